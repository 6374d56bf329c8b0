"""MLP-Mixer in NumPy float64, written from the paper's equations; shares no code with the package."""

import math

import numpy as np


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def gelu(x, act):
    if act == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def layer_norm(x, weight, bias, eps):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def mixer(state, images, *, patch, act, eps=1e-6):
    """Return (block outputs, logits) for a state dict with timm's names and images (N, channels, H, W)."""
    p = {name: np.asarray(tensor.detach().cpu().double().numpy()) for name, tensor in state.items()}
    x = np.asarray(images, dtype=np.float64)
    n, channels, height, width = x.shape
    rows, columns = height // patch, width // patch
    tokens = np.empty((n, rows * columns, channels * patch * patch))
    for r in range(rows):
        for c in range(columns):
            tile = x[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            tokens[:, r * columns + c] = tile.reshape(n, -1)
    kernel = p["stem.proj.weight"].reshape(p["stem.proj.weight"].shape[0], -1)
    x = tokens @ kernel.T + p["stem.proj.bias"]
    outputs = []
    depth = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    for i in range(depth):
        b = {name.removeprefix(f"blocks.{i}."): v for name, v in p.items() if name.startswith(f"blocks.{i}.")}
        y = layer_norm(x, b["norm1.weight"], b["norm1.bias"], eps)
        y = np.swapaxes(y, 1, 2)  # (N, C, S)
        y = gelu(y @ b["mlp_tokens.fc1.weight"].T + b["mlp_tokens.fc1.bias"], act)
        y = y @ b["mlp_tokens.fc2.weight"].T + b["mlp_tokens.fc2.bias"]
        x = x + np.swapaxes(y, 1, 2)
        y = layer_norm(x, b["norm2.weight"], b["norm2.bias"], eps)
        y = gelu(y @ b["mlp_channels.fc1.weight"].T + b["mlp_channels.fc1.bias"], act)
        x = x + y @ b["mlp_channels.fc2.weight"].T + b["mlp_channels.fc2.bias"]
        outputs.append(x)
    x = layer_norm(x, p["norm.weight"], p["norm.bias"], eps)
    logits = x.mean(axis=1) @ p["head.weight"].T + p["head.bias"]
    return outputs, logits
