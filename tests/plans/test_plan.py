from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.errors import PlanError
from segformerpp.plans import (
    PRESETS,
    BipartiteMatching,
    MergePlan,
    Neighbour1d,
    Neighbour2d,
    StageMerge,
)

stride = st.integers(1, 9)
merges = st.one_of(
    st.none(),
    st.builds(BipartiteMatching, st.floats(0, 1), stride, stride),
    st.builds(Neighbour1d, stride),
    st.builds(Neighbour2d, stride, stride),
)
options = {"proportional": st.booleans(), "min_tokens": st.sampled_from([0, 1, 64])}
weighted = st.one_of(
    st.builds(BipartiteMatching, st.floats(0, 1), stride, stride, **options),
    st.builds(Neighbour1d, stride, **options),
    st.builds(Neighbour2d, stride, stride, **options),
)
stages = st.one_of(
    st.builds(StageMerge, merges, st.one_of(merges, weighted)),
    st.builds(
        StageMerge,
        st.builds(BipartiteMatching, st.floats(0, 1), stride, stride),
        st.one_of(merges, weighted),
        st.one_of(st.just(0), st.integers(2, 40)),
    ),
)
plans = st.builds(
    MergePlan, st.tuples(stages, stages, stages, stages), st.sampled_from([1.0, 0.5, 0.75])
)


@given(plans)
def test_every_notation_reads_what_it_writes(plan: MergePlan) -> None:
    assert MergePlan.from_dict(plan.to_dict()) == plan
    assert MergePlan.parse(str(plan)) == plan
    assert MergePlan.parse(plan.name) == plan


@given(plan=plans)
def test_yaml_reads_what_it_writes(plan: MergePlan, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "plan.yaml"
    path.write_text(plan.to_yaml())
    assert MergePlan.parse(str(path)) == plan
    assert MergePlan.parse(path) == plan


def test_presets_are_the_papers() -> None:
    hq = {"mode": "bsm", "r": 0.8, "sx": 4, "sy": 4}
    assert list(PRESETS)[:5] == ["none", "hq", "fast", "2x2", "downsample"]
    assert MergePlan.parse("hq").to_dict()["stages"] == [
        *[{"q": None, "kv": {"mode": "bsm", "r": 0.6, "sx": 2, "sy": 2}}] * 2,
        *[{"q": hq, "kv": None}] * 2,
    ]
    assert str(PRESETS["fast"]) == "kv12:mode=bsm,r=0.9,sx=4,sy=4 q34:mode=bsm,r=0.9,sx=4,sy=4"
    assert str(PRESETS["2x2"]) == "q1234:mode=n2d,sx=2,sy=2"
    assert PRESETS["downsample"] == MergePlan(input_scale=0.5)
    assert MergePlan.parse(None) == MergePlan.parse("none") == MergePlan()
    assert (
        MergePlan.parse("q34:mode=bsm,r=0.8,sx=4,sy=4 kv12:mode=bsm,r=0.6,sx=2,sy=2").name == "hq"
    )


def test_our_presets() -> None:
    assert list(PRESETS)[5:] == ["balanced", "turbo"]
    cell, keys = "mode=n2d,sx=2,sy=2,min_tokens=64", "proportional=true,min_tokens=64"
    few = f"mode=bsm,r=0.9,sx=4,sy=4,{keys}"
    assert str(PRESETS["balanced"]) == (
        f"q13:{cell} kv12:{few} kv3:mode=bsm,r=0.5,sx=2,sy=2,{keys} "
        "q4:mode=bsm,r=0.75,sx=2,sy=2,min_tokens=64"
    )
    assert str(PRESETS["turbo"]) == (
        f"q1234:{cell} kv12:{few} kv3:mode=bsm,r=0.75,sx=2,sy=2,{keys} reuse3=4"
    )


def test_proportional_is_written_only_where_it_is_on() -> None:
    text = "kv1:mode=bsm,r=0.9,sx=4,sy=4,proportional=true kv2:mode=n2d,sx=2,sy=2"
    plan = MergePlan.parse(text)
    assert [s.kv and s.kv.proportional for s in plan.stages] == [True, False, None, None]
    assert str(plan) == text
    assert plan == MergePlan.parse(text.replace("sy=2", "sy=2,proportional=false"))


def test_tome_cfg() -> None:
    plan = MergePlan.from_tome_cfg(
        [
            {"q_mode": None, "kv_mode": "bsm_r2D", "kv_r": 0.6, "kv_sx": 2, "kv_sy": 3},
            {"q_mode": "n2d", "q_s": (3, 2), "kv_mode": "neighbor_2D", "kv_s": 2},
            {"q_mode": "n1d", "q_s": 4},
            {},
        ]
    )
    assert plan.stages == (
        StageMerge(kv=BipartiteMatching(0.6, sx=2, sy=3)),
        StageMerge(Neighbour2d(sx=2, sy=3), Neighbour2d(sx=2, sy=2)),
        StageMerge(Neighbour1d(4)),
        StageMerge(),
    )
    off = {"q_mode": None, "q_r": 0.5, "q_sx": None}
    assert MergePlan.from_tome_cfg([off, None, {}, {"kv_mode": None}]) == MergePlan()


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ({"q_mode": "bms", "q_r": 0.5}, "q_mode"),
        ({"q_mode": ["bsm"]}, "q_mode"),
        ({"q_moed": "bsm"}, "q_moed"),
        ({"kv_mode": "bsm", "kv_r": 1.5, "kv_sx": 2, "kv_sy": 2}, "kv_r"),
        ({"kv_mode": "bsm", "kv_r": "0.5", "kv_sx": 2, "kv_sy": 2}, "kv_r"),
        ({"kv_mode": "bsm", "kv_r": float("nan"), "kv_sx": 2, "kv_sy": 2}, "kv_r"),
        ({"q_mode": "bsm", "q_r": 0.5, "q_sx": 0, "q_sy": 2}, "q_sx"),
        ({"q_mode": "bsm", "q_r": 0.5, "q_sx": 2}, "q_sy"),
        ({"q_mode": "bsm", "q_r": 0.5, "q_sx": 2, "q_sy": 2, "q_s": 2}, "q_s"),
        ({"q_mode": "n1d", "q_s": 0}, "q_s"),
        ({"q_mode": "n1d", "q_s": (2, 2)}, "q_s"),
        ({"q_mode": "n2d", "q_s": (2, 2, 2)}, "q_s"),
        ({"q_mode": "n2d", "q_s": (2, 0)}, "q_sx"),
        ({"q_mode": "n2d", "q_s": 2, "q_sx": 4}, "q_sx"),
        ({"q_r": 0.5}, "q_r"),
    ],
)
def test_tome_cfg_errors_name_stage_and_key(stage: dict, key: str) -> None:
    with pytest.raises(PlanError, match=rf"stage 3, {key}\b"):
        MergePlan.from_tome_cfg([{}, {}, stage, {}])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"stages": [None] * 3}, "4 stages, not 3"),
        ({"stages": "none"}, "stages: a list"),
        ({"stages": [None] * 4, "extra": 1}, "plan, extra: unknown key"),
        ({"version": 2}, "version"),
        ({"input_scale": 0}, "input_scale"),
        ({"input_scale": 1.5}, "input_scale"),
        ({"stages": [{"k": None}, None, None, None]}, "stage 1, k: unknown"),
        ({"stages": [{"q": "bsm"}, None, None, None]}, "stage 1, q: expected a mapping"),
        ({"stages": [None, {"q": {"mode": "bsm", "r": -1, "sx": 2, "sy": 2}}, None, None]},
         r"stage 2, q\.r: a merge ratio"),
        ({"stages": [None, {"q": {"mode": "n1d", "s": True}}, None, None]}, r"stage 2, q\.s"),
        ({"stages": [{"kv": {"mode": "n1d", "s": 2, "proportional": 1}}, None, None, None]},
         r"stage 1, kv\.proportional: true or false, not 1"),
        ({"stages": [None, {"q": {"mode": "n1d", "s": 2, "proportional": True}}, None, None]},
         r"stage 2, q\.proportional: only merged keys"),
        ({"stages": [{"q": {"mode": "n1d", "s": 2}, "reuse": 2}, None, None, None]},
         "stage 1, reuse: 2, but nothing is matched"),
        ({"stages": [None, {"reuse": 1}, None, None]}, "stage 2, reuse: a number of blocks"),
        ({"stages": [None, {"q": {"r": 0.5}}, None, None]}, r"stage 2, q\.mode: None"),
    ],
)  # fmt: skip
def test_dict_errors(data: dict, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        MergePlan.from_dict(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hqq", "neither a preset"),
        ("q5:mode=n1d,s=2", "expected q or kv"),
        ("q1:mode=n1d,s", "expected key=value"),
        ("q1:mode=n1d,s=2,s=3", "given twice"),
        ("q1:mode=n1d,s=2 q12:mode=n1d,s=2", "stage 1, q: given twice"),
        ("q1:mode=n1d,s=two", r"stage 1, q\.s"),
        ("reuse3=4", "stage 3, reuse: 4, but nothing is matched"),
        ("reuse3=a", "stage 3, reuse: a number"),
        ("reuse33=2", "stage 3, reuse: given twice"),
        ("input_scale=half", "input_scale"),
        ("input_scale=0.5 input_scale=0.5", "input_scale: given twice"),
        ("no_such.yaml", "no_such.yaml: cannot be read"),
    ],
)
def test_string_errors(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        MergePlan.parse(text)


def test_yaml_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    for text, words in [
        ("a: [", "not a YAML plan"),
        ("[" * 20000, "not a YAML plan"),
        ("stages: 2001-99-99", "not a YAML plan"),
        ("- 1", "a mapping"),
        ("stages: 3", "stages: a list"),
    ]:
        path.write_text(text)
        with pytest.raises(PlanError, match=rf"p\.yaml: .*{words}"):
            MergePlan.parse(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="not a YAML plan"):
        MergePlan.parse(path)
    with pytest.raises(PlanError, match="not a YAML plan"):
        MergePlan.parse("a\0.yaml")


def test_other_types_are_refused() -> None:
    with pytest.raises(PlanError, match="from_tome_cfg"):
        MergePlan.parse([{}])  # type: ignore[arg-type]  # what a wrong call would do
    with pytest.raises(PlanError, match="q: a strategy"):
        StageMerge(q={"mode": "n1d", "s": 2})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="stage 1: a StageMerge, not 'a'"):
        MergePlan(("a",) * 4)  # type: ignore[arg-type]
    assert MergePlan([StageMerge()] * 4) == MergePlan()  # type: ignore[arg-type]
    assert hash(MergePlan([StageMerge()] * 4)) == hash(MergePlan())  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        MergePlan().input_scale = 0.5  # type: ignore[misc]  # plans are immutable
