"""The two residual branches of a Mixer layer as operations: what they compute, and which backend computes it."""
