"""Gated PixelCNN (van den Oord et al. 2016b, arXiv:1606.05328): the likelihood of a grid, position by position.

Positions are in raster order, p = row * width + column. Two stacks read the past: the vertical one all rows above, the
horizontal one the columns to the left in the same row, and the vertical stack. No weight is masked: kernels are cropped to
the positions that they may see, and shifts (padding above and to the left) exclude the position itself. So there is no
blind spot (a test takes the Jacobian). Sampling is in pixelcnn_sampling.py, the distributions of one position in
pixelcnn_outputs.py.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.autoregressive.pixelcnn_outputs import CodeSoftmax, LogisticMixture, Output, PixelSoftmax
from bigtrain.options import MOST_LAYERS, Depth, Options, Width


class PixelCNNOptions(Options):
    """A gated PixelCNN (van den Oord et al. 2016)."""

    channels: Width = 64
    """Features of both stacks, of the embedding of codes and of the output stack."""
    layers: Depth = 12
    """Gated layers. Without attention a position sees (layers + 1) * (kernel // 2) rows up and as many columns aside."""
    kernel: int = Field(default=3, ge=3, le=255)
    """Width in positions of the square kernel from which a layer's kernels are cropped; odd."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the gates' outputs, elementwise."""
    attention_every: Depth | None = None
    """Causal attention after every so many layers; null: none."""
    attention_heads: Width = 4
    """Heads of each attention; their values split `channels` between them."""
    attention_key_channels: Width = 16
    """Size of a head's queries and keys."""
    output_layers: int = Field(default=0, ge=0, le=MOST_LAYERS)
    """Residual gated layers on single positions, between the last layer and the output."""
    condition_channels: Width = 64
    """Features of the stack that reads the coarser codes, where there are any."""
    condition_layers: int = Field(default=4, ge=0, le=MOST_LAYERS)
    """Residual 3x3 blocks of that stack, on the coarser grid."""
    mixtures: Depth | None = None
    """For pixels: components of a discretised logistic mixture (PixelCNN++); null: a 256-way softmax per channel."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "PixelCNNOptions":
        if self.kernel % 2 == 0:
            raise ValueError(
                f"family.network.kernel is {self.kernel}; it must be odd, so that it has a centre: take {self.kernel + 1}"
            )
        if self.attention_every is not None and self.channels % self.attention_heads:
            raise ValueError(
                f"family.network.attention_heads: {self.attention_heads} does not divide family.network.channels "
                f"({self.channels}); change one of them"
            )
        if self.attention_every is not None and self.attention_every > self.layers:
            raise ValueError(
                f"family.network.attention_every is {self.attention_every}, more than the {self.layers} layers; give at "
                "most that, or null for no attention"
            )
        return self


def gate(x: Tensor, dim: int = 1) -> Tensor:
    """tanh(first half) * sigmoid(second half) of dimension `dim` (eq. 2)."""
    signal, opening = x.chunk(2, dim)
    return signal.tanh() * opening.sigmoid()


class GatedLayer(nn.Module):
    """Figure 2 of the paper. With W and O the kernels, L the link, V and H the stacks, t the terms of class and coarser codes:

    a = W_v V + t_v,  V' = V + gate(a)
    b = W_h H + L (W_v V) + t_h,  H' = H + O gate(b)
    """

    def __init__(self, options: PixelCNNOptions, classes: int | None, conditioned: bool) -> None:
        super().__init__()
        channels, reach = options.channels, options.kernel // 2
        self.vertical = nn.Conv2d(channels, 2 * channels, (reach + 1, options.kernel), padding=(0, reach))
        self.link = nn.Conv2d(2 * channels, 2 * channels, 1)
        # Biases here would be redundant with those of the link and of the next layer.
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, reach + 1), bias=False)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.of_class = nn.Embedding(classes, 4 * channels) if classes is not None else None
        if self.of_class is not None:
            nn.init.zeros_(self.of_class.weight)
        self.of_condition = nn.Conv2d(options.condition_channels, 4 * channels, 1, bias=False) if conditioned else None
        self.dropout = nn.Dropout(options.dropout)
        self.reach = reach

    def vertical_step(self, rows: Tensor, labels: Tensor | None, maps: Tensor | None) -> tuple[Tensor, Tensor]:
        """gate(a), which is added to V [n, c, h, w], and L (W_v V) + t_h [n, 2c, h, w].

        `rows`: V with `reach` more rows on top, [n, c, reach + h, w]. `maps`: the coarser codes' features at these h
        rows [n, condition_channels, h, w].
        """
        summed = self.vertical(rows)
        linked = self.link(summed)
        terms = [] if self.of_class is None else [self.of_class(labels)[:, :, None, None]]
        if self.of_condition is not None:
            terms.append(self.of_condition(maps))
        for term in terms:
            vertical, horizontal = term.chunk(2, 1)
            summed, linked = summed + vertical, linked + horizontal
        return self.dropout(gate(summed)), linked

    def forward(self, v: Tensor, h: Tensor, labels: Tensor | None, maps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both stacks [n, c, h, w], labels int64 [n], maps as in `vertical_step` -> both stacks after the layer."""
        moved, linked = self.vertical_step(F.pad(v, (0, 0, self.reach, 0)), labels, maps)
        summed = self.horizontal(F.pad(h, (self.reach, 0))) + linked
        return v + moved, h + self.out(self.dropout(gate(summed)))


class CausalAttention(nn.Module):
    """H + O attention(queries, keys, values) over the strict past, by heads (after PixelSNAIL, arXiv:1712.09763, eq. 4).

    A query is linear in H and the position's coordinates ("background"); keys and values of q < p are linear in those of
    q and in the embedding of the value at q, which the stacks at q have not read. A learned null key comes before all
    others: it gives the first position something to attend to, and shifts keys by one, so that plain causal attention will do.
    """

    background: Tensor

    def __init__(self, options: PixelCNNOptions, grid: tuple[int, int], inputs: int) -> None:
        super().__init__()
        channels, heads = options.channels, options.attention_heads
        self.heads, self.key, self.value = heads, options.attention_key_channels, channels // heads
        keys_and_values = heads * (self.key + self.value)
        self.of_features = nn.Linear(channels, heads * self.key + keys_and_values)
        self.of_background = nn.Linear(2, heads * self.key + keys_and_values, bias=False)
        self.of_input = nn.Linear(inputs, keys_and_values, bias=False)
        self.null_key = nn.Parameter(torch.zeros(heads, 1, self.key))
        self.null_value = nn.Parameter(torch.zeros(heads, 1, self.value))
        self.out = nn.Linear(channels, channels, bias=False)
        height, width = grid
        rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
        background = torch.stack([rows, columns], -1).view(-1, 2) - 0.5
        self.register_buffer("background", background.to(torch.get_default_dtype()), persistent=False)

    def query_and_rest(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of `of_features` and `of_background` [n, p, ...] -> queries [n, heads, p, key], and the part of keys and
        values that does not depend on the value at a position [n, p, heads * (key + value)]."""
        query, rest = projected.tensor_split([self.heads * self.key], dim=-1)
        return self._by_head(query), rest

    def keys_and_values(self, rest: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """That part and the embedded values [n, p, inputs] -> [n, heads, p, key] and [n, heads, p, value]."""
        key, value = (rest + self.of_input(embedded)).tensor_split([self.heads * self.key], dim=-1)
        return self._by_head(key), self._by_head(value)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """H [n, c, height, width] and the embedded values [n, height, width, inputs] -> H after attention."""
        projected = self.of_features(h.flatten(2).transpose(1, 2)) + self.of_background(self.background)
        query, rest = self.query_and_rest(projected)
        keys, values = self.keys_and_values(rest, embedded.flatten(1, 2))
        # Nobody attends to the last position: with the null key in front, causal means strictly past.
        keys = torch.cat([self.null_key.expand(len(h), -1, -1, -1), keys[:, :, :-1]], 2)
        values = torch.cat([self.null_value.expand(len(h), -1, -1, -1), values[:, :, :-1]], 2)
        attended = F.scaled_dot_product_attention(query, keys, values, is_causal=True)
        return h + self.out(attended.transpose(1, 2).flatten(2)).transpose(1, 2).view_as(h)


class OutputLayer(nn.Module):
    """x + B gate(A x) on the features [..., c] of single positions."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.into = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.dropout(gate(self.into(x), -1)))


class ResidualBlock(nn.Module):
    """x + 1x1(relu(3x3(relu(x)))), the block of VQ-VAE (van den Oord et al. 2017, section 4.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.wide(x.relu()).relu())


class ConditionStack(nn.Module):
    """Coarser codes int64 [n, h, w] -> features [n, condition_channels, H, W] on the fine grid.

    Residual blocks on the coarser grid, then a transposed convolution whose kernel size is its stride: each of the fine
    positions within a coarse one has its own weights, which nearest upsampling would not give it.
    """

    def __init__(self, options: PixelCNNOptions, codebook_size: int, stride: tuple[int, int]) -> None:
        super().__init__()
        channels = options.condition_channels
        self.embedding = nn.Embedding(codebook_size, channels)
        self.blocks = nn.Sequential(*[ResidualBlock(channels) for _ in range(options.condition_layers)])
        self.upsample = nn.ConvTranspose2d(channels, channels, stride, stride=stride)

    def forward(self, codes: Tensor) -> Tensor:
        return self.upsample(self.blocks(self.embedding(codes).movedim(-1, 1)))


class PixelCNN(nn.Module):
    """p(values | class, coarser codes), in raster order, over a grid of codes or of pixels.

    Values are int64 [n, h, w] codes, or int64 [n, c, h, w] pixels in 0..255 of c = 1 or 3 channels; labels int64 [n] where
    there are classes; condition int64 [n, ch, cw] where there are coarser codes. With the default options, codebook_size 512
    and grid 32 x 32, neither classes nor condition: 1,118,080 parameters.

    What differs from the published models:

    - Gated PixelCNN: the vertical stack has a residual connection as well; the first layer is linear, with cropped
      kernels of the same size instead of 7x7; one ReLU and one linear map make the logits. Class and coarser codes enter
      both stacks' gates, as there. Colours are ordered in the output only, not in every layer.
    - PixelCNN++: its likelihood, and its channel of ones, by which a network tells padding from data; neither its
      downsampling nor its weight norm. Probabilities between the edges are exact.
    - PixelSNAIL: its attention, added to the stack by a linear map instead of a gated block, with several heads and a
      null key.
    - VQ-VAE-2: the condition's stack ends in a transposed convolution; the output stack is gated.
    """

    recomputed_blocks = (GatedLayer, CausalAttention, OutputLayer, ResidualBlock)

    def __init__(
        self,
        options: PixelCNNOptions,
        grid: tuple[int, int],
        codebook_size: int | None,
        classes: int | None,
        condition: tuple[int, tuple[int, int]] | None,
        pixel_channels: int = 3,
    ) -> None:
        """`grid` (height, width); `codebook_size` None: pixels, of `pixel_channels`; `classes` None: not class-conditional.

        `condition`: codebook size and grid of the coarser codes, if there are any. Raises ValueError if `grid` is not a
        whole multiple of that grid, or for mixtures with codes.
        """
        super().__init__()
        channels, reach, (height, width) = options.channels, options.kernel // 2, grid
        self.grid, self.reach, self.classes = grid, reach, classes
        self.over_pixels = codebook_size is None
        self.output = _make_output(options, codebook_size, pixel_channels)
        inputs = self.output.width + 1
        self.stem_vertical = nn.Conv2d(inputs, channels, (reach, options.kernel), padding=(0, reach))
        self.stem_horizontal = nn.Conv2d(inputs, channels, (1, reach))
        self.layers = nn.ModuleList(
            [GatedLayer(options, classes, condition is not None) for _ in range(options.layers)]
        )
        every = options.attention_every
        self.attentions = nn.ModuleDict(
            {str(i): CausalAttention(options, grid, self.output.width) for i in _attended(options.layers, every)}
        )
        self.output_layers = nn.Sequential(
            *[OutputLayer(channels, options.dropout) for _ in range(options.output_layers)]
        )
        self.condition_grid, self.condition = None, None
        if condition is not None:
            codes, self.condition_grid = condition
            if height % self.condition_grid[0] or width % self.condition_grid[1]:
                raise ValueError(
                    f"a grid of {height} x {width} is not a whole multiple of the coarser codes' "
                    f"{self.condition_grid[0]} x {self.condition_grid[1]}; condition on a level that it is a multiple of"
                )
            stride = (height // self.condition_grid[0], width // self.condition_grid[1])
            self.condition = ConditionStack(options, codes, stride)

    @property
    def draws_per_position(self) -> int:
        """Uniforms that `sample` takes for each position."""
        return self.output.draws

    def forward(self, values: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Negative log-likelihood [n, h, w] in nats per position, pixels summed over channels; at least float32."""
        features = self.features(values, labels, condition).movedim(1, -1)
        return -self.output.log_probabilities(features, self._by_position(values)).sum(-1)

    def logits(self, values: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Codes: [n, h, w, K]. Pixels: [n, h, w, c, 256], or [n, h, w, 10 (or 3), mixtures], see LogisticMixture."""
        features = self.features(values, labels, condition).movedim(1, -1)
        return self.output.logits(features, self._by_position(values))

    def features(self, values: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """[n, channels, h, w]; those at a position depend on the values before it and not on its own value.

        Raises ValueError for shapes or dtypes that are not this network's.
        """
        self._check_values(values)
        self.check_context(len(values), labels, condition)
        return self.features_of(self.output.embed(self._by_position(values)), labels, self.condition_maps(condition))

    def condition_maps(self, condition: Tensor | None) -> Tensor | None:
        """The coarser codes' features on this grid [n, condition_channels, h, w]; None without a condition."""
        return None if self.condition is None else self.condition(condition)

    def features_of(self, embedded: Tensor, labels: Tensor | None, maps: Tensor | None) -> Tensor:
        """`features` from the values' embedding [n, h, w, width] and the `condition_maps`."""
        x = F.pad(embedded, (0, 1), value=1.0).movedim(-1, 1)
        # Kernels over the rows above (columns to the left), shifted by one, so the last row (column) is not read.
        v = self.stem_vertical(F.pad(x[:, :, :-1], (0, 0, self.reach, 0)))
        h = self.stem_horizontal(F.pad(x[..., :-1], (self.reach, 0)))
        for number, layer in enumerate(self.layers):
            v, h = layer(v, h, labels, maps)
            if str(number) in self.attentions:
                h = self.attentions[str(number)](h, embedded)
        return self.output_layers(h.movedim(1, -1)).movedim(-1, 1)

    def gated_layers(self) -> list[tuple[GatedLayer, CausalAttention | None]]:
        """The layers, each with the attention after it, if there is one."""
        layers = cast(Iterable[GatedLayer], self.layers)
        attentions = cast(dict[str, CausalAttention], dict(self.attentions.items()))
        return [(layer, attentions.get(str(number))) for number, layer in enumerate(layers)]

    def _by_position(self, values: Tensor) -> Tensor:
        """Values as the outputs take them, [n, h, w, channels]."""
        return values.movedim(1, -1) if self.over_pixels else values.unsqueeze(-1)

    def _check_values(self, values: Tensor) -> None:
        expected = (self.output.channels, *self.grid) if self.over_pixels else self.grid
        if values.dtype != torch.int64 or tuple(values.shape[1:]) != expected:
            raise ValueError(
                f"values are {values.dtype} {list(values.shape)}; this network reads torch.int64 [n, "
                f"{', '.join(map(str, expected))}]"
            )

    def check_context(self, samples: int, labels: Tensor | None, condition: Tensor | None) -> None:
        """Raises ValueError unless labels and condition are given if and only if they are needed, and fit."""
        _check_given("labels", labels, None if self.classes is None else (samples,))
        grid = self.condition_grid
        _check_given("condition", condition, None if grid is None else (samples, *grid))


def _check_given(name: str, tensor: Tensor | None, expected: tuple[int, ...] | None) -> None:
    if expected is None and tensor is not None:
        raise ValueError(f"{name} are given, but this network was built without them; leave them out")
    if expected is not None and (tensor is None or tensor.dtype != torch.int64 or tuple(tensor.shape) != expected):
        given = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise ValueError(f"{name}: {given}; this network needs torch.int64 {list(expected)}")


def _attended(layers: int, every: int | None) -> list[int]:
    """Numbers of the layers after which there is attention."""
    return [] if every is None else list(range(every - 1, layers, every))


def _make_output(options: PixelCNNOptions, codebook_size: int | None, pixel_channels: int) -> Output:
    if codebook_size is None:
        return (
            PixelSoftmax(options.channels, pixel_channels)
            if options.mixtures is None
            else LogisticMixture(options.channels, options.mixtures, pixel_channels)
        )
    if options.mixtures is not None:
        raise ValueError("family.network.mixtures: codes have no order that a mixture could use; it is for pixels")
    return CodeSoftmax(options.channels, codebook_size)
