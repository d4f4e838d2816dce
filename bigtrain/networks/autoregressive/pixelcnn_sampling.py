"""Drawing from a PixelCNN with every activation computed once (after Ramachandran et al. 2017, arXiv:1704.06001).

Naive sampling runs one forward of the whole grid for each position. But the inputs of a position's features do not change
once they are drawn, so every activation can be computed once and kept:

- the vertical stack at row r reads only rows above r: it runs a row at a time, and keeps the last kernel // 2 rows of each
  layer; its output to the horizontal stack, and all terms of class and coarser codes, are computed for the full row;
- the horizontal stack runs a position at a time, two matrix products a layer, and keeps each layer's inputs of this row;
- attention keeps keys and values of all positions in buffers of their final size.

All state is allocated once, in fixed shapes, the host never waits for the device, and the row's number is a tensor. So every
row is the same sequence of kernels, which CUDA can capture as a graph.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtrain.networks.autoregressive.pixelcnn import CausalAttention, PixelCNN
from bigtrain.networks.autoregressive.pixelcnn_outputs import Sampling
from bigtrain.networks.layers.normalisation import without_autocast


@torch.no_grad()
def sample(
    network: PixelCNN,
    uniforms: Tensor,
    labels: Tensor | None = None,
    condition: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    capture: bool = False,
) -> Tensor:
    """Draws n samples, shaped like the values that `network` reads: int64 [n, h, w] or [n, c, h, w].

    `uniforms` [n, h * w, network.draws_per_position] in [0, 1), float32 or float64, on the network's device: a sample is a
    function of its own row of them, its label and its coarser codes. `labels` and `condition` as in the network's forward.
    See `Sampling` for the other options. `capture` captures one row as a CUDA graph and replays it: the same values, with
    less work for the host. Computes in the precision of the weights, without autocast.

    Raises ValueError for shapes that do not fit, for a network in training mode (dropout would be on), for top_k or top_p
    with mixtures, and for `capture` on another device than CUDA.
    """
    height, width = network.grid
    samples, positions = len(uniforms), height * width
    if uniforms.shape[1:] != (positions, network.draws_per_position) or not uniforms.is_floating_point():
        raise ValueError(
            f"uniforms are {uniforms.dtype} {list(uniforms.shape)}; this network takes floating-point numbers "
            f"[n, {positions}, {network.draws_per_position}]"
        )
    network.check_context(samples, labels, condition)
    if network.training:
        raise ValueError("the network is in training mode; call its eval() before sampling")
    if capture and uniforms.device.type != "cuda":
        raise ValueError(f"capture needs CUDA, but the uniforms are on {uniforms.device}; leave capture off")
    sampling = Sampling(temperature, top_k, top_p)
    with without_autocast(uniforms):
        maps = network.condition_maps(condition)
        state = RowState(network, samples, labels, sampling, uniforms)
        draw_row = state.captured() if capture else state.draw_row
        rows = uniforms.unflatten(1, network.grid)
        drawn = torch.empty(samples, height, width, network.output.channels, dtype=torch.int64, device=uniforms.device)
        for row in range(height):
            state.uniforms.copy_(rows[:, row])
            if maps is not None and state.maps is not None:
                state.maps.copy_(maps[:, :, row : row + 1])
            if not capture:
                state.visible = (row + 1) * width
            draw_row()
            drawn[:, row].copy_(state.values)
    return drawn.movedim(-1, 1).contiguous() if network.over_pixels else drawn.squeeze(-1)


class AttentionState:
    """Keys and values of one attention [n, heads, positions + 1, size]; the first is the null one."""

    def __init__(self, module: CausalAttention, samples: int) -> None:
        self.module = module
        positions = len(module.background)
        self.keys = module.null_key.new_zeros(samples, module.heads, positions + 1, module.key)
        self.values = module.null_value.new_zeros(samples, module.heads, positions + 1, module.value)
        self.keys[:, :, :1] = module.null_key
        self.values[:, :, :1] = module.null_value
        self.background = module.of_background(module.background) + module.of_features.bias
        self.weight = module.of_features.weight.t().contiguous()
        self.out = module.out.weight.t().contiguous()
        self.row_background = self.background[:0]
        self.rest = self.background[:0]

    def start_row(self, positions: Tensor) -> None:
        self.row_background = self.background.index_select(0, positions)

    def attend(self, h: Tensor, column: int, allowed: Tensor) -> None:
        """h [n, c] += attention over those of the first keys that `allowed` (bool [keys]) marks as drawn."""
        projected = torch.addmm(self.row_background[column], h, self.weight).unsqueeze(1)
        query, self.rest = self.module.query_and_rest(projected)
        visible = len(allowed)
        attended = F.scaled_dot_product_attention(
            query, self.keys[:, :, :visible], self.values[:, :, :visible], attn_mask=allowed[None, None, None]
        )
        h.addmm_(attended.flatten(1), self.out)

    def store(self, embedded: Tensor, row: Tensor) -> None:
        """Stores key and value of the position just drawn, whose embedding is [n, inputs], in row `row` int64 [1]."""
        key, value = self.module.keys_and_values(self.rest, embedded.unsqueeze(1))
        self.keys.index_copy_(2, row, key)
        self.values.index_copy_(2, row, value)


class RowState:
    """The state that is kept from row to row. `draw_row` reads `uniforms` and `maps` and writes the row into `values`."""

    def __init__(
        self, network: PixelCNN, samples: int, labels: Tensor | None, sampling: Sampling, uniforms: Tensor
    ) -> None:
        """`uniforms`: only its dtype and device are used."""
        height, width = network.grid
        reach, output = network.reach, network.output
        self.network, self.labels, self.sampling = network, labels, sampling
        self.channels, self.width, self.reach = network.stem_horizontal.out_channels, width, reach
        new = network.stem_horizontal.weight.new_zeros
        self.uniforms = uniforms.new_zeros(samples, width, output.draws)
        self.values = torch.zeros(samples, width, output.channels, dtype=torch.int64, device=uniforms.device)
        layers = network.gated_layers()
        first_map = layers[0][0].of_condition
        self.maps = None if first_map is None else new(samples, first_map.in_channels, 1, width)
        # The vertical stack: the rows above, of the input (its last channel is PixelCNN++'s channel of ones) and of each
        # layer. Channels last, because a row's convolution is one matrix product over positions.
        inputs = output.width + 1
        self.inputs_above = _rows(new, samples, inputs, reach, width)
        self.rows_above = [_rows(new, samples, self.channels, reach, width) for _ in layers]
        # The horizontal stack: the inputs of the stem and of each layer in this row, with `reach` zeros to the left.
        self.inputs = new(samples, reach + width, inputs)
        self.inputs[:, reach:, -1] = 1
        self.states = new(len(layers) + 1, samples, reach + width, self.channels)
        self.linked = new(len(layers), samples, width, 2 * self.channels)
        self.summed = new(samples, 2 * self.channels)
        assert network.stem_horizontal.bias is not None
        self.stem, self.stem_bias = _as_matrix(network.stem_horizontal.weight), network.stem_horizontal.bias
        self.weights = [(_as_matrix(layer.horizontal.weight), _as_matrix(layer.out.weight)) for layer, _ in layers]
        self.attentions = [None if module is None else AttentionState(module, samples) for _, module in layers]
        self.columns = [self._views(column) for column in range(width)]
        self.raster = torch.arange(height * width + 1, device=uniforms.device)
        self.positions = self.raster[:width].clone()
        self.visible = height * width
        """How many keys attention reads; a mask hides those that have not been drawn."""

    def _views(self, column: int) -> list[tuple[Tensor, ...]]:
        """For each layer at one column: link, window, matrix, the column's input, matrix, the column's output.

        The reach + 1 columns of a window are contiguous in memory, so that a window is a matrix without a copy. Made once,
        because with small batches making views would cost as much as the products.
        """
        here = column + self.reach
        return [
            (
                self.linked[number][:, column],
                self.states[number].flatten(1)[:, column * self.channels : (here + 1) * self.channels],
                into,
                self.states[number][:, here],
                out,
                self.states[number + 1][:, here],
            )
            for number, (into, out) in enumerate(self.weights)
        ]

    def draw_row(self) -> None:
        """Draws the next row, and advances the state to the row below it."""
        self._run_vertical_stack()
        attentions = [attention for attention in self.attentions if attention is not None]
        allowed = self.raster[: self.visible] <= self.positions.unsqueeze(1)
        key_rows = self.positions + 1  # the null key is in row 0
        for attention in attentions:
            attention.start_row(self.positions)
        for column in range(self.width):
            features = self._run_horizontal_stack(column, allowed)
            values = self.network.output.draw(features, self.uniforms[:, column], self.sampling)
            embedded = self.network.output.embed(values)
            self.values[:, column] = values
            self.inputs[:, column + self.reach, :-1] = embedded
            for attention in attentions:
                attention.store(embedded, key_rows[column : column + 1])
        _push(self.inputs_above, self.inputs[:, self.reach :].transpose(1, 2).unsqueeze(2))
        self.positions.add_(self.width)

    def _run_vertical_stack(self) -> None:
        """V of this row, from the rows above; writes its output to the horizontal stack into `linked`."""
        v = self.network.stem_vertical(self.inputs_above)
        for number, (layer, _) in enumerate(self.network.gated_layers()):
            rows = torch.cat([self.rows_above[number], v], 2)
            moved, linked = layer.vertical_step(rows, self.labels, self.maps)
            self.rows_above[number].copy_(rows[:, :, 1:])
            self.linked[number].copy_(linked.squeeze(2).transpose(1, 2))
            v = v + moved

    def _run_horizontal_stack(self, column: int, allowed: Tensor) -> Tensor:
        """The features [n, c] that the value at this column is drawn from."""
        inputs = self.inputs.shape[-1]
        window = self.inputs.flatten(1)[:, column * inputs : (column + self.reach) * inputs]
        h = self.states[0][:, column + self.reach]
        torch.addmm(self.stem_bias, window, self.stem, out=h)
        for (linked, window, into, before, out, h), attention in zip(
            self.columns[column], self.attentions, strict=True
        ):
            torch.addmm(linked, window, into, out=self.summed)
            self.summed[:, : self.channels].tanh_()
            torch.addmm(before, F.glu(self.summed, 1), out, out=h)
            if attention is not None:
                attention.attend(h, column, allowed[column])
        return self.network.output_layers(h)

    def reset(self) -> None:
        """Goes back to the first row. What is left of the rows drawn so far is overwritten before it is read."""
        for rows in (self.inputs_above, *self.rows_above):
            rows.zero_()
        self.positions.copy_(self.raster[: self.width])

    def captured(self) -> Callable[[], None]:
        """`draw_row` as a CUDA graph; leaves the state at the first row."""
        with torch.cuda.device(self.uniforms.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.draw_row()  # libraries choose kernels and allocate workspaces outside of the graph
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads of a run go on meanwhile, and pin batches or ask whether a collective has ended.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.draw_row()
        self.reset()
        return graph.replay


def _rows(new: Callable[..., Tensor], samples: int, channels: int, rows: int, width: int) -> Tensor:
    """Zeros [samples, channels, rows, width] with the channels innermost in memory."""
    return new(samples, rows, width, channels).permute(0, 3, 1, 2)


def _push(rows: Tensor, row: Tensor) -> None:
    """Drops the top row and appends one at the bottom."""
    rows.copy_(torch.cat([rows[:, :, 1:], row], 2))


def _as_matrix(kernel: Tensor) -> Tensor:
    """A kernel of one row [out, in, 1, columns] as the matrix [columns * in, out] by which windows are multiplied."""
    return kernel.squeeze(2).permute(2, 1, 0).flatten(0, 1).contiguous()
