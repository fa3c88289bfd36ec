"""torch.compile in place: what is compiled, that it computes the same, and errors in one line."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from test_step import DRAWS, batch, small_step

from icda.errors import UserError
from icda.training.compilation import compile_parts, explain_compile_error, uncompiled
from icda.training.precision import Precision

ENCODER = "test_efficientnet"  # the smallest with all that matters: batch norm, strides, residuals


@pytest.fixture
def counted(monkeypatch):
    """Has ``compile_parts`` use a compiler that changes nothing; returns the list of what it was given."""
    torch.compiler.reset()
    programs = []

    def compiler(graph, inputs):
        programs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    yield programs
    torch.compiler.reset()


def taken(method, loss, size=(64, 64), steps=1, precision="fp32"):
    """All that steps leave behind: terms, gradients and buffers."""
    for module in method.modules():  # random numbers differ where compiled
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    if method.pca is not None:
        method.pca.prototypes.copy_(torch.eye(len(method.pca.prototypes)))
    for step in range(steps):
        method.zero_grad()
        with Precision(precision, torch.device("cpu")).autocast():
            rest, terms = method(batch(loss, size=size), step, DRAWS)
        method.finish(rest)
    gradients = {n: p.grad for n, p in method.student.named_parameters()}
    return {**terms, **gradients, **{f"buffer {n}": b.double() for n, b in method.named_buffers()}}


def assert_near(found, expected, rtol, atol=1e-6):
    """Each tensor is off by at most a share of its length, or by ``atol``, what float32 sums to where it is zero."""
    assert found.keys() == expected.keys()
    wrong = {n: (found[n] - e).norm().item() for n, e in expected.items()}
    assert not {n: w for n, w in wrong.items() if w > rtol * expected[n].norm().item() + atol}


@pytest.mark.parametrize(("encoder", "low_memory"), [(ENCODER, False), ("test_convnext", True)])
def test_each_way_of_calling_an_encoder_is_one_program(loss_config, counted, encoder, low_memory):
    loss = loss_config()
    expected = taken(small_step(loss, encoder=encoder, low_memory=low_memory), loss, steps=2)
    method = small_step(loss, encoder=encoder, low_memory=low_memory)
    names = list(method.state_dict())
    compile_parts(method)
    assert list(method.state_dict()) == names
    found = taken(method, loss, steps=2)
    assert_near(found, expected, 1e-4)
    programs = len(counted)
    assert programs >= 3  # student with and without gradients, and the teacher's with the frozen encoder's
    taken(method, loss)
    with torch.no_grad(), uncompiled():
        method.student.eval()(torch.randn(1, 3, 96, 64))
    copy.deepcopy(method).student.encoder(torch.randn(1, 3, 32, 96))  # a copy is a plain one
    assert len(counted) == programs


def test_what_is_not_there_is_not_compiled(loss_config):
    loss = loss_config(feature_distance=0.0, enhanced=0.0, reference=0.0, pca_source=0.0, pca_target=0.0, mix=0.0)
    method = small_step(loss, encoder=ENCODER)
    compile_parts(method)
    assert method.teacher is None and method.frozen is None
    assert method.student.encoder._compiled_call_impl is not None and method.student.head._compiled_call_impl is None


def test_recomputed_batch_norm_is_not_compiled(loss_config, caplog):
    method = small_step(loss_config(), encoder=ENCODER, low_memory=True)
    compile_parts(method)
    assert method.student.encoder._compiled_call_impl is None and method.frozen._compiled_call_impl is not None
    assert "has batch norm and is not compiled" in caplog.text


def test_a_compiled_module_outside_its_compiler_is_the_plain_one(loss_config, counted):
    loss = loss_config()
    method = small_step(loss, encoder=ENCODER)
    plain = taken(copy.deepcopy(method), loss)
    compile_parts(method)
    with uncompiled():
        found = taken(method, loss)
    assert not counted and all(torch.equal(found[n], value) for n, value in plain.items())


def test_errors_of_other_origin_are_left_alone():
    assert explain_compile_error(RuntimeError("out of memory")) is None


def test_a_missing_compiler_is_said_in_one_line():
    from torch._inductor import config

    torch.compiler.reset()
    missing = config.patch({"cpp.cxx": (None, "/nowhere/g++"), "force_disable_caches": True})
    layer = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.GELU())
    layer.compile()
    with pytest.raises(Exception) as caught, missing:
        layer(torch.ones(2, 3))
    found = explain_compile_error(caught.value)
    assert isinstance(found, UserError) and "\n" not in str(found)
    assert "No working C++ compiler" in str(found) and str(found).endswith("or give compile=false")
    torch.compiler.reset()


@pytest.fixture
def in_float64():
    """Makes networks and pictures of float64, where no rounding lets a rectifier or a maximum choose otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_a_really_compiled_encoder_computes_the_same(loss_config, in_float64):
    loss = loss_config(enhanced=0.0, reference=0.0, pca_source=0.0, pca_target=0.0, mix=0.0)
    torch.compiler.reset()
    results = []
    for compiled in (False, True):
        method = small_step(loss, encoder="test_resnet")
        if compiled:
            compile_parts(method)
        results.append(taken(method, loss))
    assert all(r.dtype == torch.float64 for name, r in results[0].items() if name.startswith("encoder"))
    assert_near(results[1], results[0], 1e-9, 1e-12)
