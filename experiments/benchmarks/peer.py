"""The peers' side of the benchmarks: a process in its own environment that runs blocks of work on request.

    .venv-peers/bin/python experiments/benchmarks/peer.py

Reads one JSON object a line, `{"block": NAME, ...options}`, and answers each with one JSON line:
`seconds` and further results of the block, or `error`. Between two blocks it waits without using the processor.
"""

import functools
import json
import platform
import sys
import time
import traceback
from importlib import metadata
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from peer_networks import ConvNet, MobileNetV2, ResNet
from saliency import core as saliency

FORMATS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def hello(threads: int) -> dict[str, Any]:
    """Set the number of threads for operations, and return the package versions."""
    torch.set_num_threads(threads)
    packages = [f"{name} {metadata.version(name)}" for name in ("torch", "captum", "saliency")]
    return {"versions": "; ".join([f"python {platform.python_version()}", *packages])}


@functools.cache
def _trainer(network: str, layout: str, compiled: bool) -> tuple[Any, ...]:
    makers = {
        "student": lambda: MobileNetV2(10, 5),
        "resnet20": lambda: ResNet(20, 10, IMAGENET_MEAN, IMAGENET_STD),
        "convnet": ConvNet,
    }
    model = makers[network]().to(memory_format=FORMATS[layout]).train()
    optimizer = (
        torch.optim.Adam(model.parameters())
        if network == "student"
        else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    )
    return torch.compile(model) if compiled else model, optimizer, torch.nn.CrossEntropyLoss()


def train(
    network: str, layout: str, batch: int, steps: int, size: int, precision: str = "float32", compiled: bool = False
) -> dict[str, Any]:
    """Run training steps on random images, in float32 or under autocast to bfloat16, and return their seconds."""
    model, optimizer, loss = _trainer(network, layout, compiled)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator).to(memory_format=FORMATS[layout])
    labels = torch.randint(0, 10, (batch,), generator=generator)
    begin = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            error = loss(model(images), labels)
        error.backward()
        optimizer.step()
    return {"seconds": time.perf_counter() - begin}


@functools.cache
def _explained(network: str, weights: str, layout: str) -> torch.nn.Module:
    resnet = network == "resnet56"
    model = ResNet(56, 10, IMAGENET_MEAN, IMAGENET_STD) if resnet else MobileNetV2(10, 5)
    with np.load(weights) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    state |= {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(state)
    return model.to(memory_format=FORMATS[layout]).eval()


def _pictures(path: str, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=FORMATS[layout]), torch.from_numpy(arrays["labels"])


def captum(network: str, weights: str, images: str, layout: str, at_once: int, output: str) -> dict[str, Any]:
    """Run captum's Integrated Gradients with its defaults, `at_once` images a call; write a file of attributions."""
    model = _explained(network, weights, layout)
    pictures, labels = _pictures(images, layout)
    explainer = IntegratedGradients(model)
    maps, deltas = [], []
    begin = time.perf_counter()
    for start in range(0, len(pictures), at_once):
        chosen = slice(start, start + at_once)
        attributions, delta = explainer.attribute(
            pictures[chosen], target=labels[chosen], return_convergence_delta=True
        )
        maps.append(attributions)
        deltas.append(delta)
    seconds = time.perf_counter() - begin
    np.savez(output, attributions=torch.cat(maps).permute(0, 2, 3, 1).numpy(), deltas=torch.cat(deltas).numpy())
    return {"seconds": seconds}


def saliency_maps(network: str, weights: str, images: str, layout: str, steps: int, output: str) -> dict[str, Any]:
    """Run Integrated Gradients of PAIR's `saliency`, one image at a time, as its interface requires."""
    model = _explained(network, weights, layout)
    pictures, labels = _pictures(images, layout)
    target = 0

    def gradients(batch: np.ndarray, call_model_args: Any = None, expected_keys: Any = None) -> dict[str, np.ndarray]:
        leaf = torch.from_numpy(batch).float().permute(0, 3, 1, 2)
        leaf = leaf.contiguous(memory_format=FORMATS[layout]).requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
        return {saliency.INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).numpy()}

    explainer, maps = saliency.IntegratedGradients(), []
    begin = time.perf_counter()
    for picture, label in zip(pictures.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True):
        target = label
        maps.append(explainer.GetMask(picture, gradients, x_steps=steps, batch_size=steps))
    seconds = time.perf_counter() - begin
    attributions = np.stack(maps).astype(np.float32)
    with torch.no_grad():
        logits = (model(pictures) - model(torch.zeros_like(pictures))).gather(1, labels[:, None])[:, 0]
    np.savez(output, attributions=attributions, deltas=attributions.sum((1, 2, 3)) - logits.numpy())
    return {"seconds": seconds}


BLOCKS = {"hello": hello, "train": train, "captum": captum, "saliency": saliency_maps}


def main() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = BLOCKS[request.pop("block")](**request)
        except Exception:  # any error is reported to the other side
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
