"""One training step of ICDA, top to bottom (method section 7)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from icda.config import LossConfig
from icda.data.classes import ClassSet
from icda.models import PCA, SegmentationModel
from icda.training.dacs import DacsDraws, PseudoLabel, draw_dacs, mix, pseudo_label
from icda.training.losses import cross_entropy, feature_distance, thing_cells
from icda.training.mean_teacher import MeanTeacher, use_batch_statistics


@dataclass(frozen=True)
class Batch:
    """A batch of source and target pairs; B of each.

    Attributes:
        source: S, labelled day images (B, 3, H, W) float32, normalised.
        source_label: (B, H, W) int64.
        enhanced: E, its twin made by CEM, normalised; None where no term needs it.
        enhanced_label: (B, H, W) int64 or None.
        reference: R, day images of the target's places, normalised, or None.
        target: T, night images, normalised, or None.
    """

    source: Tensor
    source_label: Tensor
    enhanced: Tensor | None = None
    enhanced_label: Tensor | None = None
    reference: Tensor | None = None
    target: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None})


@dataclass(frozen=True)
class Draws:
    """Everything random in a step, apart from dropout and stochastic depth.

    Attributes:
        target_is_reference: Whether the pseudo labels and the mix are made on R instead of T.
        dacs: The mix.
    """

    target_is_reference: bool
    dacs: DacsDraws


class TrainStep(nn.Module):
    """Student, teacher, frozen encoder and prototypes, and the step that trains the student.

    Which terms are computed follows from the weights in ``loss``: a term of weight 0 costs nothing, and a part that
    no term needs is None.

    Attributes:
        student: The model that is trained.
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
    """

    def __init__(
        self,
        student: SegmentationModel,
        classes: ClassSet,
        loss: LossConfig,
        teacher_momentum: float = 0.999,
        border: tuple[int, int] = (15, 15),
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = MeanTeacher(student, teacher_momentum) if loss.needs_teacher else None
        self.frozen = None
        if loss.feature_distance and pretrained:
            self.frozen = copy.deepcopy(student.encoder).requires_grad_(False)
            use_batch_statistics(self.frozen)
        self.pca = (
            PCA(len(classes), loss.pca_momentum, loss.pca_tau, classes.ignore_index) if loss.needs_pca else None
        )
        self.classes = classes
        self.loss = loss
        self.border = border

    def train(self, mode: bool = True) -> TrainStep:
        """Training mode for the student; the frozen encoder's features are the student's before its first step."""
        super().train(mode)
        if self.frozen is not None:
            # Where an encoder has batch norm, its maps by running statistics lie far from the student's by those of
            # the batch, and the feature distance would measure that.
            use_batch_statistics(self.frozen)
        return self

    def draw(self, generator: np.random.Generator, batch: Batch) -> Draws:
        """Draw all that is random in a step on this batch (method section 7.7 and 7.8)."""
        return Draws(
            target_is_reference=bool(generator.random() < self.loss.reference_probability),
            dacs=draw_dacs(
                generator,
                batch.source_label,
                self.loss.mix_jitter_probability,
                self.loss.mix_jitter_strength,
                self.loss.mix_blur_probability,
            ),
        )

    def forward(self, batch: Batch, step: int, draws: Draws) -> dict[str, Tensor]:
        """Compute every term and add its gradient to the student's; the optimiser's step is the caller's.

        A branch's gradient is taken as soon as its terms are there, so that only one branch's activations are alive
        at a time; the sum is the same.

        Args:
            batch: Source and target pairs.
            step: Training step, from 0.
            draws: What ``draw`` returned for this batch.

        Returns:
            Scalar float32 per term, before its weight, without a graph, and ``pseudo_label_share``.
        """
        terms: dict[str, Tensor] = {}
        if self.teacher is not None:
            self.teacher.update(self.student, step)  # 1
        source_maps = self.student.encoder(batch.source)
        new = {"source": self.l_src(source_maps, batch)}  # 2
        if self.frozen is not None:
            new["feature_distance"] = self.l_fd(source_maps, batch)  # 3
        self.backward(new, terms)
        if batch.enhanced is not None:
            with torch.set_grad_enabled(self.loss.enhanced > 0):
                enhanced_maps = self.student.encoder(batch.enhanced)
            if self.loss.enhanced:
                self.backward({"enhanced": self.l_enh(enhanced_maps, batch)}, terms)  # 4
        if self.loss.needs_dar_source:
            logits = self.coupled_logits(enhanced_maps, source_maps, batch.enhanced)
            new = {"reference": self.l_ref(logits, batch)}  # 5
            if self.pca is not None:
                self.pca.update(logits, batch.enhanced_label)
                new["pca_source"] = self.l_pca_src(logits)
            self.backward(new, terms)
        if self.loss.pca_target:
            with torch.no_grad():
                target_maps, reference_maps = map(self.student.encoder, (batch.target, batch.reference))
            logits = self.coupled_logits(target_maps, reference_maps, batch.target)
            self.backward({"pca_target": self.l_pca_trg(logits)}, terms)  # 6
        if self.teacher is not None:
            pseudo, target = self.pseudo_labels(batch, draws)  # 7
            mean, std = self.student.mean, self.student.std
            mixed = mix(batch.source, batch.source_label, target, pseudo, draws.dacs, mean, std)
            self.backward({"mix": self.l_mix(*mixed)}, terms)  # 8
            terms["pseudo_label_share"] = pseudo.share
        return terms

    def backward(self, new: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
        """Add the gradient of the weighted sum of new terms; record the terms."""
        total = sum(getattr(self.loss, name) * value for name, value in new.items())
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
        terms.update({name: value.detach() for name, value in new.items()})

    def l_src(self, source_maps: list[Tensor], batch: Batch) -> Tensor:
        """L_src: cross entropy of the labelled day image S (method section 7.2)."""
        return self.segment(source_maps, batch.source, batch.source_label)

    def l_fd(self, source_maps: list[Tensor], batch: Batch) -> Tensor:
        """Feature distance of the last map of S to the frozen encoder's, at cells of things (method section 7.3)."""
        with torch.no_grad():
            frozen = self.frozen(batch.source)[-1]
        things, count = self.classes.things, len(self.classes)
        cells = thing_cells(batch.source_label, frozen.shape[2:], things, count, self.loss.feature_distance_min_share)
        return feature_distance(source_maps[-1], frozen, cells)

    def l_enh(self, enhanced_maps: list[Tensor], batch: Batch) -> Tensor:
        """L_enh: cross entropy of the enhanced twin E (method section 7.4)."""
        return self.segment(enhanced_maps, batch.enhanced, batch.enhanced_label)

    def l_ref(self, coupled: Tensor, batch: Batch) -> Tensor:
        """L_ref: cross entropy of logits of F~_E, the twin coupled to S by DAR (method section 7.5)."""
        return cross_entropy(coupled, batch.enhanced_label, self.classes.ignore_index)

    def l_pca_src(self, coupled: Tensor) -> Tensor:
        """L_pca_src: alignment of logits of F~_E to the prototypes (method section 7.5)."""
        return self.pca(coupled)

    def l_pca_trg(self, coupled: Tensor) -> Tensor:
        """L_pca_trg: alignment of logits of F~_T to the prototypes (method section 7.6)."""
        return self.pca(coupled)

    def l_mix(self, image: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """L_mix: weighted cross entropy of the DACS mix (method section 7.8)."""
        return self.segment(self.student.encoder(image), image, labels, weight)

    def segment(self, maps: list[Tensor], image: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross entropy of the student's logits from its maps, at the image's size."""
        logits = self.student.upsample(self.student.head(maps), image.shape[2:])
        return cross_entropy(logits, labels, self.classes.ignore_index, weight)

    def coupled_logits(self, night: list[Tensor], day: list[Tensor], image: Tensor) -> Tensor:
        """Logits of DAR's maps, through which DAR alone is trained: encoder maps and head weights are constants."""
        fused = self.student.dar([m.detach() for m in night], [m.detach() for m in day])
        constants = {name: p.detach() for name, p in self.student.head.named_parameters()}
        return self.student.upsample(functional_call(self.student.head, constants, (fused,)), image.shape[2:])

    @torch.no_grad()
    def pseudo_labels(self, batch: Batch, draws: Draws) -> tuple[PseudoLabel, Tensor]:
        """The teacher's labels, and the image that they belong to: R or T."""
        if draws.target_is_reference:
            image, logits = batch.reference, self.teacher.model(batch.reference)
        else:
            image, logits = batch.target, self.teacher_logits(batch.target, batch.reference)
        return pseudo_label(logits, self.loss.pseudo_label_threshold, self.border), image

    def teacher_logits(self, night: Tensor, day: Tensor | None) -> Tensor:
        """The teacher's logits (B, C, H, W) of night images, coupled to the day images where the loss says so."""
        teacher = self.teacher.model
        if not self.loss.pseudo_label_with_dar:
            return teacher(night)
        maps = teacher.dar(teacher.encoder(night), teacher.encoder(day))
        return teacher.upsample(teacher.head(maps), night.shape[2:])
