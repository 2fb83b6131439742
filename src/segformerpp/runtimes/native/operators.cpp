// Operators of our own for OpenVINO, on processors with AVX-512.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/extension.hpp>
#include <openvino/op/op.hpp>

#include "kernels.hpp"

namespace {

bool is_able(const ov::element::Type& type) {
#ifdef __AVX512BF16__
    if (type == ov::element::bf16) return true;
#endif
    return type == ov::element::f32;
}

const Unit* units(const ov::Tensor& x) { return static_cast<const Unit*>(x.data()); }
Unit* units(ov::Tensor& x) { return static_cast<Unit*>(x.data()); }

// Values, weighted with 2^(query . key + log) over the sum of these.
//
// Inputs: queries (B, N, C), keys (B, M, C), values (B, M, C), all f32 or all bf16; perhaps logs
// (B, M) or (1, M), f32. C is `heads` times at most `MOST_CHANNELS` channels, a multiple of `ROWS`.
// Queries and keys that are bf16 are multiplied as bytes where `in_bytes` is 1, not 0.
// Output: (B, N, C).
class SoftmaxAttention : public ov::op::Op {
public:
    OPENVINO_OP("SoftmaxAttention", "segformerpp");
    SoftmaxAttention() = default;
    SoftmaxAttention(const ov::OutputVector& inputs, std::int64_t heads, std::int64_t in_bytes)
        : Op(inputs), m_heads(heads), m_in_bytes(in_bytes) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        const auto type = get_input_element_type(0);
        NODE_VALIDATION_CHECK(this, get_input_size() == 3 || get_input_size() == 4);
        NODE_VALIDATION_CHECK(this, m_heads > 0);
        NODE_VALIDATION_CHECK(this, !m_in_bytes || type == ov::element::bf16);
        for (int i = 0; i < 3; i++) {
            const auto& shape = get_input_partial_shape(i);
            NODE_VALIDATION_CHECK(this, is_able(type) && get_input_element_type(i) == type);
            NODE_VALIDATION_CHECK(this, shape.size() == 3 && shape[2].is_static());
            const auto& other = get_input_partial_shape(i == 2 ? 1 : 0);
            NODE_VALIDATION_CHECK(this, shape[0].compatible(other[0]) && shape[2] == other[2]);
            NODE_VALIDATION_CHECK(this, i != 2 || shape[1].compatible(other[1]));
            const auto channels = shape[2].get_length() / m_heads;
            NODE_VALIDATION_CHECK(this, shape[2] == channels * m_heads &&
                                            channels % attention::ROWS == 0 &&
                                            channels <= attention::MOST_CHANNELS);
        }
        if (get_input_size() == 4) {
            const auto& logs = get_input_partial_shape(3);
            NODE_VALIDATION_CHECK(this, get_input_element_type(3) == ov::element::f32);
            NODE_VALIDATION_CHECK(this, logs.size() == 2);
            NODE_VALIDATION_CHECK(this, logs[1].compatible(get_input_partial_shape(1)[1]));
            NODE_VALIDATION_CHECK(
                this, logs[0].compatible(1) || logs[0].compatible(get_input_partial_shape(0)[0]));
        }
        set_output_type(0, type, get_input_partial_shape(0));
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<SoftmaxAttention>(inputs, m_heads, m_in_bytes);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("heads", m_heads);
        visitor.on_attribute("in_bytes", m_in_bytes);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const auto q = inputs[0].get_shape(), k = inputs[1].get_shape();
        const auto heads = (std::size_t)m_heads;
        const float* logs = nullptr;
        std::size_t stride = 0;
        if (inputs.size() == 4) {
            logs = inputs[3].data<const float>();
            stride = inputs[3].get_shape()[0] == 1 ? 0 : k[1];
        }
        outputs[0].set_shape(q);
        auto compute = attention::compute<1, 1>;
#ifdef __AVX512BF16__
        if (inputs[0].get_element_type() == ov::element::bf16)
            compute = m_in_bytes ? attention::compute<2, 4> : attention::compute<2, 2>;
#endif
        compute({q[0], q[1], k[1], heads, q[2] / heads}, units(inputs[0]), units(inputs[1]),
                units(inputs[2]), logs, stride, units(outputs[0]));
        return true;
    }

private:
    std::int64_t m_heads = 1, m_in_bytes = 0;
};

// GELU of a 3x3 depthwise convolution.
//
// Inputs: images (B, H, W, C), f32 or bf16; weight (9, C) and bias (C), f32. C is a multiple of
// `LANES`. There is a column of zeros on either side, and a row of zeros above and below where
// `above` and `below` are 1, not 0. Output: (B, H - 2 + above + below, W, C).
class DepthwiseGelu : public ov::op::Op {
public:
    OPENVINO_OP("DepthwiseGelu", "segformerpp");
    DepthwiseGelu() = default;
    DepthwiseGelu(const ov::OutputVector& inputs, std::int64_t above, std::int64_t below)
        : Op(inputs), m_above(above), m_below(below) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        auto shape = get_input_partial_shape(0);
        NODE_VALIDATION_CHECK(this, get_input_size() == 3 && is_able(get_input_element_type(0)));
        NODE_VALIDATION_CHECK(this, shape.size() == 4 && shape[3].is_static());
        const auto channels = shape[3].get_length();
        NODE_VALIDATION_CHECK(this, channels % LANES == 0);
        NODE_VALIDATION_CHECK(this, get_input_partial_shape(1) == ov::PartialShape({9, channels}));
        NODE_VALIDATION_CHECK(this, get_input_partial_shape(2) == ov::PartialShape({channels}));
        shape[1] = shape[1] + m_above + m_below - 2;
        set_output_type(0, get_input_element_type(0), shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<DepthwiseGelu>(inputs, m_above, m_below);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("above", m_above);
        visitor.on_attribute("below", m_below);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const auto x = inputs[0].get_shape();
        outputs[0].set_shape({x[0], x[1] + m_above + m_below - 2, x[2], x[3]});
        auto compute = depthwise::compute<1>;
#ifdef __AVX512BF16__
        if (inputs[0].get_element_type() == ov::element::bf16) compute = depthwise::compute<2>;
#endif
        compute({x[0], x[1], x[2], x[3], (int)m_above, (int)m_below}, units(inputs[0]),
                inputs[1].data<const float>(), inputs[2].data<const float>(), units(outputs[0]));
        return true;
    }

private:
    std::int64_t m_above = 1, m_below = 1;
};

#ifdef __AVX512BF16__
// The same of quantised images, quantised: the result is `zero` and one more for each `step`.
//
// Inputs: images (B, H, W, C), u8; weight (9, C), i8; factor (C) and bias (C), f32: the convolution
// is the factor times what the bytes give, and the bias; zeros (C), u8: what stands for 0 in images.
// C is a multiple of `GROUP`. Around them there are zeros. Output: like the images.
class QuantisedDepthwiseGelu : public ov::op::Op {
public:
    OPENVINO_OP("QuantisedDepthwiseGelu", "segformerpp");
    QuantisedDepthwiseGelu() = default;
    QuantisedDepthwiseGelu(const ov::OutputVector& inputs, float step, std::int64_t zero)
        : Op(inputs), m_step(step), m_zero(zero) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        using ov::element::f32, ov::element::i8, ov::element::u8;
        const auto& shape = get_input_partial_shape(0);
        NODE_VALIDATION_CHECK(this, get_input_size() == 5 && shape.size() == 4);
        NODE_VALIDATION_CHECK(this, shape[3].is_static());
        const auto channels = shape[3].get_length();
        NODE_VALIDATION_CHECK(this, channels % depthwise_bytes::GROUP == 0);
        const ov::element::Type types[] = {u8, i8, f32, f32, u8};
        for (int i = 0; i < 5; i++)
            NODE_VALIDATION_CHECK(this, get_input_element_type(i) == types[i]);
        NODE_VALIDATION_CHECK(this, get_input_partial_shape(1) == ov::PartialShape({9, channels}));
        for (int i = 2; i < 5; i++)
            NODE_VALIDATION_CHECK(this, get_input_partial_shape(i) == ov::PartialShape({channels}));
        NODE_VALIDATION_CHECK(this, m_zero >= 0 && m_zero < 256 && m_step > 0);
        NODE_VALIDATION_CHECK(this, depthwise_bytes::Result({m_step, (int)m_zero}).bits() >= 0);
        set_output_type(0, u8, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<QuantisedDepthwiseGelu>(inputs, m_step, m_zero);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("step", m_step);
        visitor.on_attribute("zero", m_zero);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const auto x = inputs[0].get_shape();
        outputs[0].set_shape(x);
        depthwise_bytes::compute(
            {x[0], x[1], x[2], x[3]}, inputs[0].data<const std::uint8_t>(),
            inputs[1].data<const std::int8_t>(), inputs[2].data<const float>(),
            inputs[3].data<const float>(), inputs[4].data<const std::uint8_t>(),
            {m_step, (int)m_zero}, outputs[0].data<std::uint8_t>());
        return true;
    }

private:
    float m_step = 1;
    std::int64_t m_zero = 0;
};
#endif

// Logits of what four scales add to the fused features: ReLU and classifier of the sum of the
// finest one's linear layer and three coarser scales, resized bilinearly.
//
// Inputs: tokens (B, H, W, D) of the finest scale; the layer's weight; coarser scales (B, h, w, F),
// of the type of the tokens, f32 or bf16; the classifier's weight; its bias, f32, filled up with
// zeros. F is a multiple of `head::WIDTH`; for the form of weights, f32 or pairs of bf16 in i32, see
// `head::compute`. Output: (B, H, W, classes), f32.
class DecodeHead : public ov::op::Op {
public:
    OPENVINO_OP("DecodeHead", "segformerpp");
    DecodeHead() = default;
    DecodeHead(const ov::OutputVector& inputs, std::int64_t classes)
        : Op(inputs), m_classes(classes) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        constexpr int MAPS = head::MAPS;
        const auto type = get_input_element_type(0);
        NODE_VALIDATION_CHECK(this, get_input_size() == 4 + MAPS && is_able(type));
        auto shape = get_input_partial_shape(0);
        const auto &weight = get_input_partial_shape(1), &bias = get_input_partial_shape(3 + MAPS);
        NODE_VALIDATION_CHECK(this, shape.size() == 4 && weight.is_static() && bias.is_static());
        NODE_VALIDATION_CHECK(this, weight.size() == 3 && bias.size() == 1);
        const auto features = weight[0].get_length() * head::WIDTH;
        for (int i = 2; i < 2 + MAPS; i++) {
            const auto& map = get_input_partial_shape(i);
            NODE_VALIDATION_CHECK(this, get_input_element_type(i) == type);
            NODE_VALIDATION_CHECK(this, map.size() == 4 && map[3] == features);
            NODE_VALIDATION_CHECK(this, map[0].compatible(shape[0]));
        }
        const auto units = type == ov::element::f32 ? 1 : 2;
        const auto& classifier = get_input_partial_shape(2 + MAPS);
        const std::int64_t width = head::WIDTH;
        NODE_VALIDATION_CHECK(this, m_classes > 0 && m_classes <= bias[0].get_length());
        NODE_VALIDATION_CHECK(this, weight[1] * units == shape[3] && weight[2] == width);
        NODE_VALIDATION_CHECK(this, classifier[0] * width == bias[0]);
        NODE_VALIDATION_CHECK(this, classifier[1] * units == features && classifier[2] == width);
        shape[3] = m_classes;
        set_output_type(0, ov::element::f32, shape);
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<DecodeHead>(inputs, m_classes);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("classes", m_classes);
        return true;
    }

    bool has_evaluate() const override { return true; }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const auto x = inputs[0].get_shape();
        outputs[0].set_shape({x[0], x[1], x[2], (std::size_t)m_classes});
        std::vector<head::Map> maps;
        for (int i = 2; i < 2 + head::MAPS; i++) {
            const auto map = inputs[i].get_shape();
            maps.push_back({units(inputs[i]), map[1], map[2]});
        }
        const head::Shape shape{x[0], x[1], x[2], x[3], inputs[2].get_shape()[3],
                                (std::size_t)m_classes};
        auto compute = head::compute<1>;
#ifdef __AVX512BF16__
        if (inputs[0].get_element_type() == ov::element::bf16) compute = head::compute<2>;
#endif
        compute(shape, units(inputs[0]), units(inputs[1]), maps, units(inputs[2 + head::MAPS]),
                inputs[3 + head::MAPS].data<const float>(), outputs[0].data<float>());
        return true;
    }

private:
    std::int64_t m_classes = 1;
};

template <class Operator>
void add(std::vector<ov::Extension::Ptr>& all) {
    all.push_back(std::make_shared<ov::OpExtension<Operator>>());
    all.push_back(std::make_shared<ov::frontend::OpExtension<Operator>>());  // in ONNX models
}

std::vector<ov::Extension::Ptr> operators() {
    std::vector<ov::Extension::Ptr> all;
    add<SoftmaxAttention>(all);
    add<DepthwiseGelu>(all);
#ifdef __AVX512BF16__
    add<QuantisedDepthwiseGelu>(all);
#endif
    add<DecodeHead>(all);
    return all;
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(operators());
