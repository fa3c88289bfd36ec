"""One training step of ICDA, top to bottom (method section 7).

Several processes with batches of B pairs each take the step that one process would take with all their pairs in one
batch: ``DistributedDataParallel`` around ``TrainStep`` averages the gradients, and what is counted over a batch is
counted over all of them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from icda.allocator import return_freed_memory
from icda.config import LossConfig
from icda.data.classes import ClassSet
from icda.distributed import mean_over_ranks
from icda.models import PCA, SegmentationModel
from icda.training.batch import Batch, Draws
from icda.training.dacs import DacsDraws, Layer, PseudoLabel, draw_dacs, mix, pseudo_label
from icda.training.losses import cross_entropy, feature_distance, thing_cells
from icda.training.masking import draw_hidden
from icda.training.mean_teacher import MeanTeacher, use_batch_statistics
from icda.training.precision import at_least_float32
from icda.training.reaching import Reaching
from icda.training.recompute import recompute_blocks, recompute_branches, statistics_kept

_MAY_STAY_FREE = 2**30
"""Bytes; steps that leave less of them free are small, and new pages would cost them a thirtieth of their time."""


class TrainStep(nn.Module):
    """Student, teacher, frozen encoder and prototypes, and the step that trains the student.

    Which terms are computed follows from the weights in ``loss``: a term of weight 0 costs nothing, and a part that
    no term needs is None.

    Attributes:
        student: The model that is trained. A DAR that no term trains, of which only the teacher has a use, takes no
            gradient.
        teacher: The mean teacher, or None.
        frozen: The encoder as it was before training, for the feature distance, or None.
        pca: The prototypes, or None.

    Args:
        student: The model, with a DAR if a term needs it.
        classes: The label space.
        loss: Weights and settings of the terms.
        teacher_momentum: Of the teacher's running average.
        border: Rows at the top and bottom of a crop in which pseudo labels weigh 0.
        pretrained: Whether the student's encoder came with pretrained weights; without them there is nothing worth
            staying near, and the feature distance is off.
        low_memory: Whether activations of the student are computed again in the backward pass rather than kept; the
            step is the same. On a CPU some of the head's always are.
        no_grad_dtype: Autocast dtype of passes that no gradient goes through: the teacher's, the frozen encoder's,
            and the student's encoder's for DAR. None leaves them as the others are.

    Raises:
        UserError: If ``low_memory`` is asked of an encoder that cannot.
    """

    def __init__(
        self,
        student: SegmentationModel,
        classes: ClassSet,
        loss: LossConfig,
        teacher_momentum: float = 0.999,
        border: tuple[int, int] = (15, 15),
        pretrained: bool = True,
        low_memory: bool = False,
        no_grad_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        on_cpu = student.mean.device.type == "cpu"
        if on_cpu and any(isinstance(module, _BatchNorm) for module in student.encoder.modules()):
            # Convolutional encoders, whose convolutions and norms are faster with a pixel's channels side by side.
            student.encoder.to(memory_format=torch.channels_last)
        self.student = student
        self.teacher = None
        if loss.needs_teacher:
            self.teacher = MeanTeacher(student, teacher_momentum, loss.teacher_statistics)
        self.frozen = None
        if loss.feature_distance and pretrained:
            self.frozen = copy.deepcopy(student.encoder).requires_grad_(False)
            use_batch_statistics(self.frozen)
        self.pca = None
        if loss.needs_pca:
            channels = student.head.classifier.in_channels if loss.pca_space == "features" else None
            options = loss.pca_momentum, loss.pca_tau, classes.ignore_index, loss.pca_balanced, channels
            self.pca = PCA(len(classes), *options)
        self.classes = classes
        self.loss = loss
        self.border = border
        self.low_memory = low_memory
        self.no_grad_dtype = no_grad_dtype
        if student.dar is not None and not loss.needs_dar_source:
            student.dar.requires_grad_(False)
        # After the copies were made. On a CPU it takes no longer, since the parts are less to move.
        recompute_branches(student.head, "everywhere" if low_memory else "cpu")
        if low_memory:
            recompute_blocks(student.encoder)

    def train(self, mode: bool = True) -> TrainStep:
        """Training mode for the student; the frozen encoder's features are the student's before its first step."""
        super().train(mode)
        if self.frozen is not None:
            # Where an encoder has batch norm, its maps by running statistics lie far from the student's by those of
            # the batch, and the feature distance would measure that.
            use_batch_statistics(self.frozen)
        return self

    def draw(self, generator: np.random.Generator, batch: Batch) -> Draws:
        """Draw all that is random in a step (method section 7.7 and 7.8); all processes must call it.

        Args:
            generator: In the same state on every process, which draw for all their batches joined.
            batch: This process's.

        Returns:
            What concerns this process's batch.
        """
        loss, labels, ids = self.loss, batch.source_label, range(len(self.classes))
        target_is_reference = bool(generator.random() < loss.reference_probability)
        probabilities = loss.mix_jitter_probability, loss.mix_jitter_strength, loss.mix_blur_probability
        known = (*ids, self.classes.ignore_index)
        dacs = draw_dacs(generator, labels, known, *probabilities, rare=loss.mix_classes == "rare")
        hidden = reverse = None
        if loss.masked:
            hidden = draw_hidden(generator, labels, loss.mask_block, loss.mask_share)
        if loss.mix_reverse:  # what the teacher will say is not known yet: half of all classes
            every = torch.tensor(ids, device=labels.device).expand(len(labels), 1, -1)
            reverse = draw_dacs(generator, every, ids, *probabilities)
        return Draws(target_is_reference, dacs, hidden, reverse)

    def forward(
        self, batch: Batch, step: int, draws: Draws, scale: float | Tensor = 1.0, first: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute every term and add its gradient to the student's; ``finish`` and the optimiser are the caller's.

        A branch's gradient is taken as soon as its terms are there, so that only one branch's activations are alive
        at a time; the sum is the same.

        Args:
            batch: Source and target pairs.
            step: Training step, from 0.
            draws: What ``draw`` returned for this batch.
            scale: Multiplies every gradient: 1 / passes of a step, times the factor of a loss scaler.
            first: Whether this is the step's first pass; further ones leave the teacher as it is.

        Returns:
            The last branch's loss, weighted and scaled, whose gradient is not yet taken, for ``finish``; and per
            term a scalar of at least float32, before its weight, over all processes' batches and without a graph,
            with ``pseudo_label_share`` and ``pseudo_label_confidence``.
        """
        if self.loss.statistics == "all":
            return self.terms(batch, step, draws, scale, first)
        with statistics_kept(self.student):
            result = self.terms(batch, step, draws, scale, first)
        self.see_night(batch.target)
        return result

    def terms(
        self, batch: Batch, step: int, draws: Draws, scale: float | Tensor, first: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The step, in the order of method section 7; see ``forward``."""
        terms: dict[str, Tensor] = {}
        if self.teacher is not None and first:
            self.teacher.update(self.student, step)  # 1
        source_maps = self.student.encoder(batch.source)
        new = {"source": self.l_src(source_maps, batch)}  # 2
        if self.frozen is not None:
            new["feature_distance"] = self.l_fd(source_maps, batch)  # 3
        self.backward(new, terms, scale)
        if self.loss.enhanced or self.loss.needs_dar_source:
            with torch.set_grad_enabled(self.loss.enhanced > 0 or self.loss.coupling_trains_all):
                enhanced_maps = self.student.encoder(batch.enhanced)
            new = {"enhanced": self.l_enh(enhanced_maps, batch)} if self.loss.enhanced else {}  # 4
            if not self.loss.coupling_trains_all:  # else the maps' graph is still needed
                self.backward(new, terms, scale)
                new = {}
            if self.loss.needs_dar_source:
                new |= self.l_ref_and_pca_src(enhanced_maps, source_maps, batch)  # 5
            self.backward(new, terms, scale)
        if self.loss.pca_target:
            self.backward({"pca_target": self.l_pca_trg(batch)}, terms, scale)  # 6
        rest = batch.source.new_zeros(())
        if self.teacher is not None:
            pseudo, target = self.pseudo_labels(batch, draws)  # 7
            night = Layer(target, pseudo.labels, pseudo.weight)
            if self.loss.masked:
                self.backward({"masked": self.l_mask(night, draws.hidden)}, terms, scale)
            if self.loss.mix_reverse:
                day = Layer(batch.source, batch.source_label)
                self.backward({"mix_reverse": self.l_mix(night, day, draws.reverse)}, terms, scale)
            if self.loss.mix:
                rest = self.weighted({"mix": self.l_mix(self.pasted(batch), night, draws.dacs)}, terms, scale)  # 8
            terms |= {"pseudo_label_share": pseudo.share, "pseudo_label_confidence": pseudo.confidence}
        return Reaching.apply(rest, *self.trained), mean_over_ranks(terms)

    @torch.no_grad()
    def see_night(self, image: Tensor) -> None:
        """Move batch norm's running statistics, by which the student segments night images, to those of the night.

        From "Revisiting Batch Normalization For Practical Domain Adaptation", https://arxiv.org/abs/1603.04779; no
        part of the published ICDA, where all passes move them, those of day images and of DAR's maps included.

        Args:
            image: T, (B, 3, H, W) float, normalised.
        """
        use_batch_statistics(self.student)
        self.student.head(self.student.encoder(image))
        self.student.train(self.training)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The student's parameters that take a gradient; no other part has any."""
        return [p for p in self.student.parameters() if p.requires_grad]

    def weighted(self, new: dict[str, Tensor], terms: dict[str, Tensor], scale: float | Tensor) -> Tensor:
        """The weighted sum of new terms, scaled; record the terms."""
        terms.update({name: value.detach() for name, value in new.items()})
        return sum(getattr(self.loss, name) * value for name, value in new.items()) * scale

    def backward(self, new: dict[str, Tensor], terms: dict[str, Tensor], scale: float | Tensor) -> None:
        """Add the gradient of the weighted sum of new terms; record the terms."""
        total = self.weighted(new, terms, scale)
        if isinstance(total, Tensor) and total.requires_grad:  # of no terms it is the number 0
            with self.differentiating():
                total.backward()

    def finish(self, rest: Tensor) -> None:
        """Add the last branch's gradient; ``DistributedDataParallel`` then has averaged those of all branches.

        Args:
            rest: What ``forward`` returned.
        """
        # The last branch trains nothing that those before it do not. Averaging would give the parameters that no
        # branch reads a gradient of zero, and with it weight decay.
        unread = [p for p in self.trained if p.grad is None]
        with self.differentiating():
            rest.backward()
        for p in unread:
            p.grad = None
        self.tidy()

    def tidy(self) -> None:
        """On a CPU, give back what lies free between the tensors that are kept: all of it where memory is low."""
        if self.student.mean.device.type == "cpu":
            return_freed_memory(above=0 if self.low_memory else _MAY_STAY_FREE)

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Context of backward passes: as precise as the forward pass was, and moving no running statistics."""
        self.tidy()
        with torch.autocast(self.student.mean.device.type, enabled=False), statistics_kept(self.student):
            yield

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """Context of passes that no gradient goes through, in their own precision if they have one."""
        device_type, dtype = self.student.mean.device.type, self.no_grad_dtype
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if dtype is not None:
                stack.enter_context(torch.autocast(device_type, dtype, cache_enabled=False))
            yield

    def readable(self, found: Tensor) -> Tensor:
        """A copy of what came from ``without_gradients`` that a backward pass may read, in the step's precision."""
        return found.to(found.dtype if self.no_grad_dtype is None else torch.float32, copy=True)

    def l_src(self, source_maps: list[Tensor], batch: Batch) -> Tensor:
        """L_src: cross entropy of the labelled day image S (method section 7.2)."""
        return self.segment(source_maps, batch.source_label)

    def l_fd(self, source_maps: list[Tensor], batch: Batch) -> Tensor:
        """Feature distance of the last map of S to the frozen encoder's, at cells of things (method section 7.3)."""
        with self.without_gradients():
            frozen = self.frozen(batch.source)[-1]
        things, count = self.classes.things, len(self.classes)
        cells = thing_cells(batch.source_label, frozen.shape[2:], things, count, self.loss.feature_distance_min_share)
        return feature_distance(source_maps[-1], frozen, cells)

    def l_enh(self, enhanced_maps: list[Tensor], batch: Batch) -> Tensor:
        """L_enh: cross entropy of the enhanced twin E (method section 7.4)."""
        return self.segment(enhanced_maps, batch.enhanced_label)

    def l_ref_and_pca_src(
        self, enhanced_maps: list[Tensor], source_maps: list[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """L_ref, cross entropy of logits of F~_E, the twin coupled to S by DAR, and L_pca_src (section 7.5)."""
        labels = batch.enhanced_label
        logits, aligned = self.coupled(enhanced_maps, source_maps, batch.enhanced.shape[2:])
        new = {"reference": cross_entropy(logits, labels, self.classes.ignore_index)}
        if self.pca is not None:
            self.pca.update(aligned, labels)
            new["pca_source"] = self.pca(aligned, labels if self.loss.pca_labels == "given" else logits.argmax(1))
        return new

    def l_pca_trg(self, batch: Batch) -> Tensor:
        """L_pca_trg: alignment of logits of F~_T, T coupled to R by DAR, to the prototypes (method section 7.6)."""
        target_maps = self.student.encoder(batch.target) if self.loss.coupling_trains_all else None
        with self.without_gradients():
            images = (batch.target, batch.reference) if target_maps is None else (batch.reference,)
            maps = [self.student.encoder(image) for image in images]
        *rest, reference_maps = ([self.readable(m) for m in found] for found in maps)
        target_maps = rest[0] if target_maps is None else target_maps
        logits, aligned = self.coupled(target_maps, reference_maps, batch.target.shape[2:])
        return self.pca(aligned, logits.argmax(1))

    def pasted(self, batch: Batch) -> Layer:
        """Whose classes are pasted: the plain source image's, or its twin's."""
        if self.loss.mix_source == "enhanced":
            return Layer(batch.enhanced, batch.enhanced_label)
        return Layer(batch.source, batch.source_label)

    def l_mix(self, over: Layer, under: Layer, draws: DacsDraws) -> Tensor:
        """L_mix: weighted cross entropy of the DACS mix (method section 7.8), or of one the other way round."""
        image, labels, weight = mix(over, under, draws, self.student.mean, self.student.std)
        return self.segment(self.student.encoder(image), labels, weight)

    def l_mask(self, target: Layer, hidden: Tensor) -> Tensor:
        """L_mask: weighted cross entropy of the target image, of which the student sees a part, to pseudo labels.

        After "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation",
        https://arxiv.org/abs/2212.01322, without its colour jitter and blur; no part of the published ICDA.
        """
        maps = self.student.encoder(target.image.masked_fill(hidden, 0))
        return self.segment(maps, target.labels, target.weight)

    def segment(self, maps: list[Tensor], labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross entropy of the student's logits from its maps, at the labels' size."""
        logits = upsampled(self.student, self.student.head(maps), labels.shape[1:])
        return cross_entropy(logits, labels, self.classes.ignore_index, weight)

    def coupled(self, night: list[Tensor], day: list[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits of DAR's maps at ``size``, and what is aligned: the logits, or the map that they are made of.

        DAR alone is trained through them: encoder maps and head weights are constants. Unless the loss says that they
        train all: then the day maps alone are constants.
        """
        dar = partial(checkpoint, self.student.dar, use_reentrant=False) if self.low_memory else self.student.dar
        day, head = [m.detach() for m in day], self.student.head
        constants = {}
        if not self.loss.coupling_trains_all:
            night = [m.detach() for m in night]
            constants = {name: p.detach() for name, p in head.named_parameters()}
        coarse, features = functional_call(head, constants, (dar(night, day),), {"with_features": True})
        logits = upsampled(self.student, coarse, size)
        return logits, features if self.loss.pca_space == "features" else logits

    @torch.no_grad()
    def pseudo_labels(self, batch: Batch, draws: Draws) -> tuple[PseudoLabel, Tensor]:
        """The teacher's labels, and the image that they belong to: R or T."""
        if draws.target_is_reference:
            image, logits = batch.reference, self.teacher_logits(batch.reference, None)
        else:
            image, logits = batch.target, self.teacher_logits(batch.target, batch.reference)
        threshold, weigh = self.loss.pseudo_label_threshold, self.loss.pseudo_label_weight
        return pseudo_label(logits, threshold, self.border, weigh), image

    def teacher_logits(self, image: Tensor, day: Tensor | None) -> Tensor:
        """The teacher's logits (B, C, H, W), coupled to day images of the same places where the loss says so.

        Args:
            image: (B, 3, H, W) float, normalised; sides of at least one cell of the coarsest map.
            day: The day images, or None where ``image`` is one itself or there are none.
        """
        teacher = self.teacher.model
        with self.without_gradients():
            maps = teacher.encoder(image)
            if self.loss.pseudo_label_with_dar and day is not None:
                maps = teacher.dar(maps, teacher.encoder(day))
            return upsampled(teacher, teacher.head(maps), image.shape[2:])


def upsampled(model: SegmentationModel, logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits at ``size`` (H, W), of at least float32 before they are interpolated."""
    return model.upsample(at_least_float32(logits), size)
