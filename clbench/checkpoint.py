"""What resume needs: the model and the strategy's state after a phase, written atomically.

Tensors are stored by content: one that has not changed since the base model or the checkpoint
before is referred to, not written again, so a phase costs the bytes that it moved.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clbench import adapters
from clbench.errors import UserError
from clbench.results import write_atomic
from clbench.strategy import Example, Strategy

BASE = "base"  # the file name that stands for the model as it was loaded


class Place(NamedTuple):
    """Where a tensor's content lies: a file of the store, or the base model, and its key."""

    file: str
    key: str


class Checkpoints:
    """The checkpoints of one run, in `directory`, above one base model."""

    def __init__(self, directory: Path, base: nn.Module) -> None:
        self.directory = directory
        self.base = {name: tensor for name, tensor, _ in _distinct(base)}
        self.known = {tensor_digest(t): Place(BASE, name) for name, t in self.base.items()}

    def save(self, tag: str, model: nn.Module, strategy: Strategy) -> None:
        """Write the checkpoint `tag`; raises UserError if the disk is full."""
        self.directory.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        places: dict[str, Place] = {}
        aliases: dict[str, str] = {}
        for name, tensor, alias in _distinct(model, aliases=True):
            if alias:
                aliases[name] = alias
                continue
            digest = tensor_digest(tensor)
            if digest not in self.known:
                self.known[digest] = Place(f"{tag}.safetensors", name)
                tensors[name] = tensor.contiguous().cpu()
            places[name] = self.known[digest]
        if tensors:
            _save_tensors(self.directory / f"{tag}.safetensors", tensors)
        buffer = io.BytesIO()
        torch.save(strategy.state(), buffer)
        write_atomic(self.directory / f"{tag}.state", buffer.getvalue())
        manifest = {
            "structure": adapters.structure(model),
            "trainable": [n for n, p in model.named_parameters() if p.requires_grad],
            "aliases": aliases,
            "places": places,
        }
        write_atomic(self.directory / f"{tag}.json", json.dumps(manifest, sort_keys=True))

    def load(self, tag: str, model: nn.Module, strategy: Strategy) -> nn.Module:
        """Turn the base model into that of checkpoint `tag`, and give the strategy its state.

        Raises UserError if a file of the checkpoint is missing or damaged.
        """
        try:
            manifest = json.loads((self.directory / f"{tag}.json").read_text())
            state = self._load_state(tag)
            places = {name: Place(*place) for name, place in manifest["places"].items()}
            tensors = self._read(places)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(
                f"checkpoint {tag!r} in {self.directory} cannot be read ({error}); "
                "start the run anew with --fresh"
            ) from error
        device = next(model.parameters()).device
        model = adapters.rebuild(model, manifest["structure"])
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        for name, other in manifest["aliases"].items():
            tensors[name] = tensors[other]
        model.load_state_dict(tensors, assign=True)
        if hasattr(model, "tie_weights"):
            cast(Any, model).tie_weights()
        trainable = set(manifest["trainable"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
        self.known.update({tensor_digest(t): places[n] for n, t in tensors.items() if n in places})
        strategy.load_state(state)
        return model.eval()

    def prune(self, keep: str) -> None:
        """Delete every file that checkpoint `keep` does not refer to."""
        manifest = json.loads((self.directory / f"{keep}.json").read_text())
        needed = {f"{keep}.json", f"{keep}.state"}
        needed |= {place[0] for place in manifest["places"].values()}
        for path in self.directory.iterdir():
            if path.name not in needed:
                path.unlink()
        self.known = {d: p for d, p in self.known.items() if p.file == BASE or p.file in needed}

    def _load_state(self, tag: str) -> Mapping[str, Any]:
        with torch.serialization.safe_globals([Example]):
            state = torch.load(self.directory / f"{tag}.state", weights_only=True)
        return cast(Mapping[str, Any], state)

    def _read(self, places: Mapping[str, Place]) -> dict[str, Tensor]:
        """Return the tensors at `places`; equal contents never share their memory."""
        tensors: dict[str, Tensor] = {}
        used: set[str] = set()
        for name, place in places.items():
            if place.file == BASE:
                tensor = self.base[place.key]
                tensors[name] = tensor.clone() if place.key in used else tensor
                used.add(place.key)
        for file in sorted({place.file for place in places.values()} - {BASE}):
            with safe_open(self.directory / file, framework="pt") as handle:
                for name, place in places.items():
                    if place.file == file:
                        # A clone, because two reads of one key may be views of one mapping.
                        tensors[name] = handle.get_tensor(place.key).clone()
        return tensors


def tensor_digest(tensor: Tensor) -> str:
    """Return the BLAKE2b-256 of a tensor's dtype, shape and bytes."""
    content = tensor.detach().contiguous().cpu()
    digest = hashlib.blake2b(f"{content.dtype}{tuple(content.shape)}".encode(), digest_size=32)
    digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _distinct(model: nn.Module, *, aliases: bool = False) -> list[tuple[str, Tensor, str | None]]:
    """Return (name, tensor, name of the first that shares its memory) for the state's entries."""
    first: dict[tuple[int, torch.Size], str] = {}
    found: list[tuple[str, Tensor, str | None]] = []
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        alias = first.setdefault(key, name) if tensor.numel() else name
        if alias == name:
            found.append((name, tensor, None))
        elif aliases:
            found.append((name, tensor, alias))
    return found


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(tensors), temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        raise UserError(
            f"cannot write {path} ({size / 1e6:.0f} MB): {error}; free space and run the same "
            "command again, it goes on from the last finished phase"
        ) from error
