"""Flax checkpoints of a Mixer in every layout that Google's loaders have seen, written from a state dict."""

import numpy as np

_PARTS = {
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "mlp_tokens.fc1": "token_mixing/Dense_0",
    "mlp_tokens.fc2": "token_mixing/Dense_1",
    "mlp_channels.fc1": "channel_mixing/Dense_0",
    "mlp_channels.fc2": "channel_mixing/Dense_1",
}
_WHOLE = {"stem.proj": "stem", "norm": "pre_head_layer_norm", "head": "head"}


def linen(state, prefix=""):
    """Arrays by name: dense kernels (in, out), the embedding (height, width, in, out)."""
    arrays = {}
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        array = tensor.detach().cpu().numpy()
        if module.startswith("blocks."):
            _, layer, part = module.split(".", 2)
            key = f"MixerBlock_{layer}/{_PARTS[part]}"
        else:
            key = _WHOLE[module]
        if kind == "weight":
            kind = "scale" if array.ndim == 1 else "kernel"
            array = array.transpose({1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[array.ndim])
        arrays[f"{prefix}{key}/{kind}"] = np.ascontiguousarray(array)
    return arrays


def pre_linen(state, second_norm=2, singleton=0):
    """The older layout, with a singleton axis at one place of every array of the two MLPs."""
    arrays = {}
    for key, array in linen(state).items():
        key = key.replace("stem/", "embedding/").replace("pre_head_layer_norm/", "Mixer/encoder_norm/")
        if key.startswith("MixerBlock_"):
            layer, part = key.removeprefix("MixerBlock_").split("/", 1)
            if "_mixing/" in part:
                mixing, dense, kind = part.split("/")
                part = f"{mixing}_phase_0/{kind}{int(dense[-1]) + 1}"
                array = np.expand_dims(array, min(singleton, array.ndim))
            part = part.replace("LayerNorm_1", f"LayerNorm_{second_norm}")
            key = f"Mixer/encoderblock_{layer}/{part}"
        arrays[key] = array
    return arrays


LAYOUTS = {
    "linen": linen,
    "params": lambda state: linen(state, "params/") | {"opt/step": np.array(7), "step": np.array(7)},
    "target": lambda state: linen(state, "opt/target/") | {"opt/state/step": np.array(7)},
    "pre-linen": lambda state: pre_linen(state, 2, 0),
    "pre-linen, norms 0 and 1": lambda state: pre_linen(state, 1, 1),
    "pre-linen, axes last": lambda state: pre_linen(state, 2, 2),
}


def save_npz(path, arrays, *, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path
