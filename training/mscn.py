"""The set network of Kipf et al. (MSCN, CIDR 2019) on log(actual / native), with sample bitmaps, in PyTorch on the CPU.

`train` makes a model of all that is labelled. The sub-plans are encoded as `planner.features.sets` serves them, over
the words of the workload (`training.mscn_data`); the graph is written by `training.mscn_graph`. The design follows the
trees' of `training.gbdt`, so that both can be compared figure by figure: the same two ways to divide the queries, the
same rules for when to abstain, some members, each trained on everything, whose mean is the model. All networks, the
members and those that judge them without a part of the rows, are one stack of matrices and learn in one go.

What differs: the words of a vocabulary. A sub-plan with a table, column or join that a network's rows never had is left
to the native estimate, in the figures as in serving (`planner.features.known`).

The second output learns to expect the error of the first, |actual - predicted|, from the layers as they are: nothing
flows back from it, so that the estimate does not suffer.

Deterministic for one seed and one version of torch: one thread, one generator, no operation that adds up in an order
of its own.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from model_runtime.manifest import NEVER, Abstention, Featurizer, SetFeatures, Vocabulary
from planner.features import sets
from training.dataset import Labelled
from training.errors import TrainingError
from training.gbdt import LEAST_JUDGED, LEAST_ROWS, SCALES, WITHIN, Stopped
from training.gbdt_known import HeldOut, Known, find_known, with_others
from training.gbdt_scores import Split, folds_of, q_errors
from training.judging import deviation_limit, no_worse
from training.model_file import LEAST_DEVIATION, SELF_TEST_ROWS, Built, known_notes, known_templates, trained_on
from training.mscn_data import SetDataset, assemble, normal
from training.mscn_graph import FAR, Network, SetLayers, graph

if TYPE_CHECKING:
    import torch

__all__ = ["Settings", "Stopped", "Trained", "built", "fit", "train"]

Array = npt.NDArray[Any]
LEAST_EPOCHS: Final = 10
JUDGED_EPOCHS: Final = 3
"""The networks are judged after each so many epochs."""
SPREAD_SHARE: Final = 0.1
"""How much the second output's loss counts beside the first one's; they share no gradient, only the step size."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the network is made and trained. ``folds`` are the parts that the queries are divided into, ``members`` the
    networks of the model, each trained on everything. ``huber``: the loss is linear beyond it. ``epochs`` is the most,
    and fewer where there are so many rows that more than ``visits`` of them would be looked at; the best number of them
    is chosen for all networks together."""

    folds: int = 5
    members: int = 3
    hidden: int = 48
    epochs: int = 100
    visits: int = 320_000
    batch: int = 256
    rate: float = 2e-3
    decay: float = 1e-3
    dropout: float = 0.1
    huber: float = 1.5


_ONE_AT_A_TIME: Final = threading.Lock()
"""torch keeps its number of threads for the whole process."""


@dataclass(frozen=True, slots=True)
class Trained:
    """``network`` are the members; a prediction is their mean times ``scale``, within ``clip``, and is not to be used
    with a ``log_std`` above the one here, if there is one. ``splits`` has ``templates`` and ``random``, both of rows
    that the predicting network has not seen; ``unseen`` [judged] are the former's predictions, scaled, and ``within``
    the share of them that is no further off than its ``log_std``. ``rounds`` are the epochs. ``known`` are the limits
    of templates that were trained on, ``general``: templates that were not are corrected too."""

    network: Network
    scale: float
    clip: tuple[float, float]
    log_std: float | None
    splits: Mapping[str, Split]
    rounds: int
    unseen: Array
    within: float
    known: Known | None = None
    general: bool = True


def check_torch() -> None:
    """Raises TrainingError where torch is missing; does not load it."""
    try:
        there = importlib.util.find_spec("torch") is not None
    except ValueError:
        there = False  # kept from being imported
    if not there:
        raise TrainingError("this algorithm needs PyTorch: pip install 'pilotwire[mscn]'")


def train(
    labelled: Labelled,
    *,
    seed: int,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """A model of everything that is labelled. Raises as `fit` does."""
    data = assemble(labelled)
    trained = fit(data, seed=seed, stop=stop, progress=progress)
    return built(trained, data, trained_on(labelled))


def fit(
    data: SetDataset,
    settings: Settings | None = None,
    *,
    seed: int,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on all of the data. Raises TrainingError when it is too little or torch is missing, `Stopped` soon after
    ``stop`` is set. ``progress`` is told how many epochs of how many are done."""
    settings = settings or Settings()
    judged = data.judged if data.judged.sum() >= LEAST_JUDGED else ~data.lower
    if judged.sum() < LEAST_ROWS:
        raise TrainingError(
            f"only {judged.sum()} joins with rows were counted, at least {LEAST_ROWS} are needed: give more queries "
            "with joins, or more time with --budget"
        )
    groups = data.template if len(np.unique(data.template[judged])) > 1 else data.query
    if len(np.unique(groups[judged])) == 1:
        groups = np.arange(len(data))
    queries = data.query if len(np.unique(data.query[judged])) > 1 else groups
    by_template = _kept_out(folds_of(groups, judged, settings.folds, seed))
    query_fold = folds_of(queries, judged, settings.folds, seed + 1)
    by_query = _kept_out(query_fold)
    out = np.vstack([by_template, by_query, np.zeros((settings.members, len(data)), bool)])
    worded = _known(data, ~out)
    with _ONE_AT_A_TIME:
        fitted = _fit(data, ~out, judged & worded, settings, seed, stop or threading.Event(), progress)
    ratios, spreads = fitted.answers  # [networks, n] each
    ratios = ratios * worded
    count = len(by_template)
    of_queries = slice(count, count + len(by_query))
    unseen, spread = (_of_others(one[:count], by_template)[judged] for one in (ratios, spreads))
    random, doubt, readable = (_of_others(one[of_queries], by_query)[judged] for one in (ratios, spreads, worded))
    target = data.target[judged]
    native = np.abs(target)
    scale = next((scale for scale in SCALES if no_worse(native, np.abs(target - scale * unseen))), 0.0)
    error = np.abs(target - scale * unseen)
    stretch = float(np.percentile(error / np.maximum(spread, LEAST_DEVIATION), 100 * WITHIN))
    spread = np.maximum(spread * stretch, LEAST_DEVIATION)
    limit = deviation_limit(spread, native, error) if scale else NEVER
    held_out = HeldOut(target, random, np.zeros(len(target), np.int64), np.maximum(doubt * stretch, LEAST_DEVIATION))
    again = with_others(data.template, data.judged, query_fold)[judged] & readable & (queries is data.query)
    known = find_known(held_out.of(again), scale, 0, limit, SCALES)
    served = np.where(again, known.scale if known is not None else scale, scale) * random
    low, high = float(data.target[~data.lower].min()), float(data.target.max())
    return Trained(
        network=_exported(fitted.network, settings.members, stretch),
        scale=scale or (known.scale if known is not None else 0.0),
        general=scale > 0,
        clip=(min(low, 0.0) - 0.5, max(high, 0.0) + 0.5),
        log_std=limit,
        splits={
            "templates": _split(data, judged, scale * unseen),
            "random": _split(data, judged, served),
        },
        rounds=fitted.epochs,
        unseen=scale * unseen,
        within=float((error <= spread).mean()),
        known=known,
    )


def _kept_out(fold: Array) -> Array:
    """Which rows each fold keeps out, bool [folds, n]."""
    return np.array([fold == number for number in np.unique(fold[fold >= 0])])


def _of_others(values: Array, out: Array) -> Array:
    """Each row's value by the one network that has not seen it, [n]; without a meaning where all have."""
    return np.asarray(values[np.argmax(out, axis=0), np.arange(values.shape[1])])


def _split(data: SetDataset, judged: Array, prediction: Array) -> Split:
    target = data.target[judged]
    return Split(len(np.unique(data.query[judged])), len(target), q_errors(target), q_errors(target, prediction))


def _known(data: SetDataset, seen: Array) -> Array:
    """Whether a network's rows have all words of a sub-plan, bool [networks, n]."""
    words = []
    for part, elements in data.parts.items():
        width = len(data.names[part]) - len(sets.NUMBERS[part]) - (data.bitmap if part == "tables" else 0)
        present = np.zeros((len(data), width), bool)
        for column in elements.index.T:
            present |= elements.rows[column, :width] > 0
        words.append(present)
    used = np.hstack(words)
    return np.array([~(used & ~used[rows].any(axis=0)).any(axis=1) for rows in seen])


@dataclass(frozen=True, slots=True)
class _Fitted:
    """All networks after their best number of epochs; ``answers`` are the ratios and the expected errors that they
    give every row, [networks, n] each."""

    network: Network
    answers: tuple[Array, Array]
    epochs: int


def _fit(
    data: SetDataset,
    seen: Array,
    judged: Array,
    settings: Settings,
    seed: int,
    stop: threading.Event,
    progress: Callable[[int, int], None] | None,
) -> _Fitted:
    check_torch()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Fitting(data, seen, judged, settings, seed).run(stop, progress)
    finally:
        torch.set_num_threads(threads)


class _Fitting:
    """One training run of all networks at once. Weights are stacks, [networks, in, out]."""

    def __init__(self, data: SetDataset, seen: Array, judged: Array, settings: Settings, seed: int) -> None:
        """``seen`` and ``judged``, bool [networks, n]: which rows each learns from, and of the others which tell how
        good it is."""
        import torch

        self._torch = torch
        self._settings = settings
        self._data = data
        self._weight = torch.from_numpy((seen * data.weight).astype(np.float32))
        self._unseen = torch.from_numpy(~seen & judged)
        self._lower = torch.from_numpy(data.lower)
        self._target = torch.from_numpy(data.target.astype(np.float32))
        self._native = torch.from_numpy(np.log(data.native).astype(np.float32))
        self._generator = torch.Generator().manual_seed(seed)
        self._order = np.random.default_rng(seed)
        self._rows = {part: torch.from_numpy(one.rows) for part, one in data.parts.items()}
        self._index = {part: torch.from_numpy(one.index.astype(np.int64)) for part, one in data.parts.items()}
        self._normal = {part: normal(data, part) for part in data.parts}
        self._small = {
            part: (torch.from_numpy(center), torch.from_numpy(scale)) for part, (center, scale) in self._normal.items()
        }
        self._native_place = data.names["tables"].index("native")
        self._weights = self._made(len(seen))

    def _made(self, members: int) -> dict[str, torch.Tensor]:
        """He's initialisation; the outputs begin at nothing, where the native estimate is right."""
        hidden = self._settings.hidden
        shapes: dict[str, tuple[int, int]] = {}
        for part, rows in self._rows.items():
            shapes[f"{part}_first"] = (rows.shape[1], hidden)
            shapes[f"{part}_second"] = (hidden, hidden)
        shapes["merge"] = (3 * hidden, hidden)
        shapes["ratio"] = shapes["spread"] = (hidden, 1)
        weights = {}
        for name, (width, out) in shapes.items():
            drawn = self._torch.randn(members, width, out, generator=self._generator) * (2 / width) ** 0.5
            weights[name] = drawn * (0.0 if name in ("ratio", "spread") else 1.0)
            weights[f"{name}_bias"] = self._torch.zeros(members, 1, out)
        return {name: weight.requires_grad_() for name, weight in weights.items()}

    def run(self, stop: threading.Event, progress: Callable[[int, int], None] | None) -> _Fitted:
        torch, settings, count = self._torch, self._settings, len(self._data)
        decayed = [weight for name, weight in self._weights.items() if not name.endswith("_bias")]
        others = [weight for name, weight in self._weights.items() if name.endswith("_bias")]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.rate,
        )
        most = max(min(settings.epochs, settings.visits // count), min(settings.epochs, LEAST_EPOCHS))
        steps = most * -(-count // settings.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps)
        best, kept, epochs = float("inf"), self._copy(), 0
        for epoch in range(most):
            if progress is not None:
                progress(epoch, most)
            order = self._order.permutation(count)
            for start in range(0, count, settings.batch):
                if stop.is_set():
                    raise Stopped
                loss = self._loss(torch.from_numpy(order[start : start + settings.batch]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if (epoch + 1) % JUDGED_EPOCHS and epoch + 1 < most:
                continue
            answers, _ = self._answers()
            error = float((answers - self._target).abs()[self._unseen].mean())
            if error < best or not epochs:
                best, kept, epochs = error, self._copy(), epoch + 1
        if progress is not None:
            progress(most, most)
        self._weights = kept
        ratio, spread = self._answers()
        return _Fitted(self._network(), (ratio.numpy(), np.exp(np.clip(spread.numpy(), -10, 10))), epochs)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self._weights.items()}

    def _loss(self, chosen: torch.Tensor) -> torch.Tensor:
        """Huber's loss of the ratio and, separately, Laplace's of how far off it is. Of a lower bound only what is
        below it is an error."""
        ratio, spread = self._forward(chosen, training=True)
        target, lower = self._target[chosen], self._lower[chosen]
        target = self._torch.where(lower & (ratio.detach() > target), ratio.detach(), target)
        loss = self._torch.nn.functional.huber_loss(ratio, target, reduction="none", delta=self._settings.huber)
        off = (ratio.detach() - target).abs()
        loss = loss + SPREAD_SHARE * (off * (-spread).exp() + spread) * ~lower
        weight = self._weight[:, chosen]
        # Each network as if it learned alone: the optimizer's step does not depend on a constant factor.
        return (loss * weight).sum(dim=1).div(weight.sum(dim=1).clamp(min=1)).sum()

    def _answers(self) -> tuple[torch.Tensor, torch.Tensor]:
        torch = self._torch
        with torch.no_grad():
            found = [self._forward(rows, training=False) for rows in torch.arange(len(self._data)).split(1024)]
        return torch.cat([one for one, _ in found], dim=1), torch.cat([one for _, one in found], dim=1)

    def _forward(self, chosen: torch.Tensor, *, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The two outputs of all networks for these rows, [networks, rows] each."""
        torch = self._torch
        pooled = []
        for part in sets.PARTS:
            index = self._index[part][chosen]
            index = index[:, : max(int((index > 0).sum(dim=1).max()), 1)]
            real = index > 0
            elements = self._rows[part][index]
            if part == "tables":
                elements[:, :, self._native_place] = self._native[chosen][:, None] * real
            center, scale = self._small[part]
            elements = ((elements - center) * scale).clamp(-FAR, FAR)
            # Only elements that are there: most of a batch's places are padding.
            layer = self._dense(elements[real].expand(len(self._weight), -1, -1), f"{part}_first")
            layer = self._dense(self._dropped(layer, training), f"{part}_second")
            owner = real.nonzero()[:, 0]
            total = torch.zeros(len(self._weight), len(chosen), layer.shape[2])
            total = total.index_add(1, owner, layer)
            pooled.append(total / real.sum(dim=1).clamp(min=1)[None, :, None])
        merged = self._dropped(self._dense(torch.cat(pooled, dim=2), "merge"), training)
        return self._product(merged, "ratio")[..., 0], self._product(merged.detach(), "spread")[..., 0]

    def _product(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return self._torch.baddbmm(self._weights[f"{name}_bias"], values, self._weights[name])

    def _dense(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return self._product(values, name).relu()

    def _dropped(self, values: torch.Tensor, training: bool) -> torch.Tensor:
        share = self._settings.dropout
        if not training or share <= 0:
            return values
        kept = self._torch.rand(values.shape, generator=self._generator) >= share
        return values * kept / (1 - share)

    def _network(self) -> Network:
        weights = {name: weight.numpy() for name, weight in self._weights.items()}
        layers = {
            part: SetLayers(
                *self._normal[part],
                weights[f"{part}_first"],
                weights[f"{part}_first_bias"][:, 0],
                weights[f"{part}_second"],
                weights[f"{part}_second_bias"][:, 0],
            )
            for part in sets.PARTS
        }
        out = np.concatenate([weights["ratio"], weights["spread"]], axis=2)
        bias = np.concatenate([weights["ratio_bias"], weights["spread_bias"]], axis=2)[:, 0]
        return Network(layers, weights["merge"], weights["merge_bias"][:, 0], out, bias)


def _exported(network: Network, members: int, stretch: float) -> Network:
    """The last networks alone, their expected errors multiplied."""
    layers = {
        part: SetLayers(
            one.center,
            one.scale,
            one.first[-members:],
            one.first_bias[-members:],
            one.second[-members:],
            one.second_bias[-members:],
        )
        for part, one in network.sets.items()
    }
    out_bias = network.out_bias[-members:].copy()
    out_bias[:, 1] += np.log(max(stretch, LEAST_DEVIATION))
    return Network(layers, network.merge[-members:], network.merge_bias[-members:], network.out[-members:], out_bias)


# ---------------------------------------------------------------------- the model


def built(trained: Trained, data: SetDataset, templates: Sequence[str] = ()) -> Built:
    """The network as a model; ``templates`` are the digests of those that were trained on."""
    return model_of(
        trained.network,
        data,
        scale=trained.scale,
        clip=trained.clip,
        abstention=Abstention(
            log_std=trained.log_std,
            known=known_templates(trained.known, trained.scale, templates) if templates else None,
        ),
        splits=trained.splits,
        notes={
            "algorithm": "mscn",
            "epochs": trained.rounds,
            "members": trained.network.members,
            "parameters": trained.network.parameters,
            "scale": trained.scale if trained.general else 0.0,
            "within_log_std": round(trained.within, 4),
            **known_notes(trained.known),
        },
    )


def model_of(
    network: Network,
    data: SetDataset,
    *,
    scale: float,
    clip: tuple[float, float],
    abstention: Abstention | None = None,
    splits: Mapping[str, Split] | None = None,
    notes: Mapping[str, bool | int | float | str] | None = None,
) -> Built:
    """The same for a network from anywhere; needs no torch. The self-test takes some of the data's sub-plans."""
    words = data.words
    return Built(
        graph=graph(network, ratio_scale=scale, floor=LEAST_DEVIATION),
        kind="cardinality",
        featurizer=Featurizer(name=sets.Sets.name, version=sets.VERSION, options={"bitmap": data.bitmap}),
        clip=clip,
        abstention=abstention or Abstention(),
        self_test=data.inputs(np.linspace(0, len(data) - 1, min(SELF_TEST_ROWS, len(data))).astype(int)),
        splits=splits or {},
        sets=SetFeatures(**data.names),
        vocabulary=Vocabulary(
            schemas=tuple(sorted({table.split(".")[0] for table in words.tables})),
            tables=words.tables,
            columns=words.columns,
            joins=words.joins,
            operators=words.operators,
        ),
        notes=notes or {},
        native_only=scale == 0,
    )
