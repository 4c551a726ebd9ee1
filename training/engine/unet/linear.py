"""Linear layers of a frozen network with one LoRA per slot beside them, and where their gradients are gathered.

Rows are [N x b x T, C]: all of slot 0's samples, then all of slot 1's. One frozen product over all rows, then every
slot's own LoRA added in place (https://arxiv.org/abs/2106.09685: y = W x + scale B A x).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.engine.adapters import Pair, Ports, _Port
from training.engine.unet.layers import Back


@dataclass
class Pass:
    """One forward pass and its way back: what every port applies, and the gradients of that, by the port's place."""

    ports: Ports
    adapters: Sequence[Pair]  # of every port; empty for the frozen network alone
    batch: int  # samples
    learns: bool  # whether there will be a way back
    recompute: bool = False  # reckon blocks anew on the way back, to save memory
    gradients: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = next((len(pair[0]) for pair in self.adapters if pair), 1)

    def adapter(self, place: int | None) -> Pair:
        """What the port at a place applies: () for nothing, or where there is no port."""
        return self.adapters[place] if self.adapters and place is not None else ()


# ---- one LoRA per slot, over rows ----


def apply(now: Pass, pair: Pair, rows: Tensor, said: Tensor) -> Tensor:
    """Add what LoRAs say of `rows` [M, in] to `said` [M, out], in place; gives what `give_back` wants kept."""
    down, up = pair
    if now.slots == 1:
        low = torch.mm(rows, down[0].t())
        said.addmm_(low, up[0].t())
        return low
    low = torch.bmm(rows.view(now.slots, -1, rows.shape[1]), down.transpose(1, 2))
    said.view(now.slots, -1, said.shape[1]).baddbmm_(low, up.transpose(1, 2))
    return low


def give_back(now: Pass, place: int, rows: Tensor, low: Tensor, g: Tensor, into: Tensor | None) -> None:
    """Note the gradients of the LoRAs at `place` under g [M, out]; add that of the rows to `into` [M, in]."""
    down, up = now.adapters[place]
    if now.slots == 1:
        d_low = torch.mm(g, up[0])
        now.gradients[place] = torch.mm(d_low.t(), rows)[None], torch.mm(g.t(), low)[None]
        if into is not None:
            into.addmm_(d_low, down[0])
        return
    g, rows = g.view(now.slots, -1, g.shape[1]), rows.view(now.slots, -1, rows.shape[1])
    d_low = torch.bmm(g, up)
    now.gradients[place] = torch.bmm(d_low.transpose(1, 2), rows), torch.bmm(g.transpose(1, 2), low)
    if into is not None:
        into.view(rows.shape).baddbmm_(d_low, down)


# ---- layers ----


class Linear:
    """A linear layer or a 1 x 1 convolution over rows, with its LoRAs if it is a port."""

    def __init__(self, layer: nn.Module) -> None:
        is_port = isinstance(layer, _Port)
        self.port: Any = layer if is_port else None
        self.place: Any = layer._place if is_port else None  # a number, of a port
        self.inner: Any = layer.inner if is_port else layer
        self.look_up()

    def look_up(self) -> None:
        """Take the weights as they are now."""
        self.weight: Tensor = self.inner.weight.detach().flatten(1)
        self.turned = self.weight.t()
        self.bias: Tensor | None = None if self.inner.bias is None else self.inner.bias.detach()

    def __call__(self, now: Pass, rows: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        pair = now.adapter(self.place)
        if len(pair) > 2:
            return self._foreign(now, pair, rows, live)
        said = torch.mm(rows, self.turned) if self.bias is None else torch.addmm(self.bias, rows, self.turned)
        weight, place = self.weight, self.place
        if not pair:
            return said, (lambda g: torch.mm(g, weight)) if live else None
        low = apply(now, pair, rows, said)

        def back(g: Tensor) -> Tensor | None:
            made = torch.mm(g, weight) if live else None
            give_back(now, place, rows, low, g, made)
            return made

        return said, back if now.learns else None

    def _foreign(self, now: Pass, pair: Pair, rows: Tensor, live: bool) -> tuple[Tensor, Back | None]:
        """Whatever a port does with its tensors: its own forward pass, and autograd through it alone."""
        port, place, ports = self.port, self.place, now.ports
        x = rows.view(now.batch, -1, rows.shape[1])
        if not now.learns:
            return port(x).flatten(0, 1), None
        leaves = [part.detach().requires_grad_() for part in pair]
        inputs = [x.detach().requires_grad_(live), *leaves]
        kept, ports.pairs = ports.pairs, {place: tuple(leaves)}
        try:
            with torch.enable_grad():
                out = port(inputs[0])
        finally:
            ports.pairs = kept

        def back(g: Tensor) -> Tensor | None:
            made = torch.autograd.grad(out, inputs if live else leaves, g.view(out.shape))
            now.gradients[place] = made[-len(leaves) :]
            return made[0].flatten(0, 1) if live else None

        return out.detach().clone().flatten(0, 1), back


class Beside:
    """Several linears without bias that hear the same rows: one frozen product for all.

    Their weights become parts of one tensor, so that nothing is held twice.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.layers = layers
        with torch.no_grad():
            self.weight = torch.cat([layer.weight for layer in layers])
            parts = torch.split(self.weight, [len(layer.weight) for layer in layers])
            for layer, part in zip(layers, parts, strict=True):
                layer.inner.weight.data = part.view(layer.inner.weight.shape)
                layer.look_up()
        self.turned = self.weight.t()
        self.widths = [len(layer.weight) for layer in layers]

    def __call__(self, now: Pass, rows: Tensor, live: bool) -> tuple[Sequence[Tensor], Back | None]:
        pairs = [now.adapter(layer.place) for layer in self.layers]
        if any(len(pair) > 2 for pair in pairs):
            return self._apart(now, rows, live)
        said = torch.split(torch.mm(rows, self.turned), self.widths, 1)
        lows = [apply(now, pair, rows, part) if pair else None for pair, part in zip(pairs, said, strict=True)]
        if not live and not (now.learns and any(pairs)):
            return said, None

        def back(gs: Sequence[Tensor]) -> Tensor | None:
            made = torch.mm(torch.cat(list(gs), 1), self.weight) if live else None
            for layer, low, g in zip(self.layers, lows, gs, strict=True):
                if low is not None:
                    give_back(now, layer.place, rows, low, g, made)
            return made

        return said, back

    def _apart(self, now: Pass, rows: Tensor, live: bool) -> tuple[Sequence[Tensor], Back | None]:
        """One by one, for ports of a kind that is not added to a frozen product."""
        told = [layer(now, rows, live) for layer in self.layers]
        ways = [back for _, back in told]

        def back(gs: Sequence[Tensor]) -> Tensor | None:
            made = [way(g) for way, g in zip(ways, gs, strict=True) if way is not None]
            return torch.stack(made).sum(0) if live else None

        return [said for said, _ in told], back if any(ways) else None
