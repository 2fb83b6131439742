"""Token merging: pure functions on tensors that carry the strategies of `plans` out."""
