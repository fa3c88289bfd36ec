"""One step of the optimiser: passes, clipping, and steps that are left out."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from icda.errors import UserError
from icda.training.loop import Run
from icda.training.step import Batch


@pytest.fixture
def run(compose_train, tmp_path):
    """A run that is ready for its first step, and its batches."""

    def make(*overrides: str) -> Run:
        run = Run(compose_train("panels=0", "schedule.max_steps=6", "loss=dacs", *overrides), tmp_path)
        run.method.train()
        return run

    return make


def state(run: Run) -> dict[str, torch.Tensor]:
    parameters = dict(run.method.named_parameters())
    averages = {
        f"{name}.{key}": value
        for name, p in parameters.items()
        for key, value in run.optimizer.state.get(p, {}).items()
    }
    everything = {**run.method.state_dict(), **averages}
    return {name: torch.as_tensor(value).clone() for name, value in everything.items()}


def steps(run: Run, count: int, broken: tuple[int, ...] = ()) -> None:
    """Take steps on the run's own batches; every image of the given passes, counted over all steps, is NaN."""

    def batches():
        for number, batch in enumerate(run._samples()):
            if number in broken:
                batch = {k: v if k.endswith("label") else v * float("nan") for k, v in batch.items()}
            yield batch

    samples = batches()
    for _ in range(count):
        run.engine.step(samples, run.step)
        run.step += 1


def test_a_step_that_is_left_out_leaves_no_trace(run, tmp_path):
    one = run("max_skipped=1", "schedule.accumulate=2")
    steps(one, 1)
    before = state(one)
    steps(one, 1, broken=(0,))  # the first pass of the second step
    after = state(one)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert all(p.grad is None for p in one.method.parameters()) and one.guard.skipped == 1
    assert len(list((tmp_path / "not_finite").glob("*.png"))) == 1


@pytest.mark.parametrize("broken", [2, 3])
def test_the_steps_after_it_read_what_they_would_have_read(run, broken):
    seen = []

    def noting(batch: Batch, step: int, number: int, real) -> object:
        seen.append((step, number, batch.source.double().sum().item()))
        return real(batch, step, number)

    for passes in ((), (broken,)):
        one = run("max_skipped=1", "schedule.accumulate=2")
        real = one.engine._pass
        one.engine._pass = lambda batch, step, number, real=real: noting(batch, step, number, real)
        steps(one, 4, broken=passes)
    clean, skipped = seen[:8], seen[8:]
    assert [x for x in skipped if x[0] != 1] == [x for x in clean if x[0] != 1]


def test_one_too_many_ends_the_run_and_names_the_term(run):
    one = run("max_skipped=1")
    with pytest.raises(UserError, match=r"step 1: the loss source, mix.* is not finite and max_skipped=1 such"):
        steps(one, 3, broken=(0, 1))


def test_a_gradient_that_is_not_finite_is_noticed_though_the_loss_is(run):
    one = run("max_skipped=1")
    before = state(one)
    one.method.student.head.classifier.bias.register_hook(lambda g: None if g is None else g * float("inf"))
    steps(one, 1)
    assert one.guard.skipped == 1
    after = state(one)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_passes_average_their_gradients(run, monkeypatch):
    """Against the mean of the gradients of each batch alone, from the same state."""
    one = run("schedule.accumulate=2", "loss=source_only", "schedule.warmup_steps=0")
    batches = [batch for batch, _ in zip(one._samples(), range(2), strict=False)]
    alone = []
    for number, batch in enumerate(batches):
        method = copy.deepcopy(one.method)
        generator = np.random.default_rng([0, 0, number] if number else [0, 0])
        torch.manual_seed(int(generator.integers(2**63)))
        draws = method.draw(generator, Batch(**batch))
        method.finish(method(Batch(**batch), 0, draws)[0])
        alone.append({name: p.grad for name, p in method.student.named_parameters()})
    found = {}
    monkeypatch.setattr(
        one.optimizer,
        "step",
        lambda *_: found.update({name: p.grad.clone() for name, p in one.method.student.named_parameters()}),
    )
    one.engine.step(iter(batches), 0)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, msg=name)


def test_clipping_shortens_the_gradient(run):
    """Adam's first average is a tenth of the first gradient."""
    for limit, expected in ((1e-3, 1e-3), (1e6, None)):
        one = run("loss=source_only", f"schedule.clip_grad_norm={limit}")
        steps(one, 1)
        averages = [one.optimizer.state[p]["exp_avg"] for p in one.method.student.parameters() if p.requires_grad]
        norm = 10 * torch.nn.utils.get_total_norm(averages).item()
        assert norm == pytest.approx(one.engine.norms["total"] if expected is None else expected, rel=1e-4)


def test_with_fp16_a_gradient_that_overflows_lowers_the_scale_and_is_no_error_until_it_is_not_the_scale(run):
    one = run("loss=source_only")
    one.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    hook = one.method.student.head.classifier.bias.register_hook(lambda g: None if g is None else g * float("inf"))
    before = state(one)
    steps(one, 2)  # 4 -> 2 -> 1
    assert one.precision.scaler.get_scale() == 1.0 and one.guard.skipped == 0
    assert torch.equal(state(one)["student.head.classifier.weight"], before["student.head.classifier.weight"])
    one.guard.max_skipped = 1
    steps(one, 1)  # left out, and the scaler is ready for the next one
    with pytest.raises(UserError, match="the loss gradient is not finite and max_skipped=1 such"):
        steps(one, 1)
    hook.remove()
