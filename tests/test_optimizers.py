import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tessera.optim.config import AdamW, Muon, Rest, StableAdamW
from tessera.optim.muon import orthogonalized
from tessera.optim.optimizers import (
    build_optimizer,
    decay_of_step,
    leading_group,
    make_skippable,
    remember_peak,
    set_rate,
)


class Tied(nn.Module):
    """An embedding that is also the decoder, a layer's matrix, a norm and a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.norm = nn.LayerNorm(4, bias=False)
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight

    def loss(self, seed):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(7, (16,), generator=generator)
        logits = self.decoder(self.norm(self.layers[0](self.embedding(ids))))
        return nn.functional.cross_entropy(logits, ids.roll(1))


def step(model, optimizer, seed):
    optimizer.zero_grad()
    model.loss(seed).backward()
    optimizer.step()


class ReferenceStableAdamW:
    """The update as the facts state it, one scalar loop per tensor, in float64."""

    def __init__(self, model, config):
        self.config, self.step_number = config, 0
        self.weights = {n: p.detach().double().clone() for n, p in model.named_parameters()}
        self.moments = {n: [torch.zeros_like(w)] * 2 for n, w in self.weights.items()}

    def step(self, gradients, lr):
        self.step_number += 1
        t, config = self.step_number, self.config
        hats = [b * (1 - b ** (t - 1)) / (1 - b**t) for b in config.betas]
        for name, weight in self.weights.items():
            g = gradients[name].double()
            m, v = self.moments[name]
            m = hats[0] * m + (1 - hats[0]) * g
            v = hats[1] * v + (1 - hats[1]) * g * g
            self.moments[name] = [m, v]
            rms = math.sqrt(float((g * g / v.clamp(min=config.eps**2)).mean()))
            rate = lr / max(1.0, rms)
            decays = weight.ndim > 1 and not name.endswith("bias")
            weight *= 1 - rate / config.lr * (config.weight_decay if decays else 0.0)
            weight -= rate * m / (v.sqrt() + config.eps)


def test_stable_adamw_is_the_published_update():
    config = StableAdamW(lr=0.01, weight_decay=9e-4)
    model = Tied()
    optimizer = build_optimizer(config, model.named_parameters(), "cpu")
    remember_peak(optimizer)
    reference = ReferenceStableAdamW(model, config)
    for seed, multiplier in enumerate((0.1, 0.5, 1.0, 1.0, 0.3)):
        set_rate(optimizer, multiplier)
        optimizer.zero_grad()
        model.loss(seed).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        reference.step(gradients, 0.01 * multiplier)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.double(), reference.weights[name], rtol=3e-7, atol=3e-7), name


def test_matrices_and_the_embedding_decay_norms_and_biases_do_not():
    model = Tied()
    optimizer = build_optimizer(StableAdamW(weight_decay=1e-4), model.named_parameters(), "cpu")
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decay[id(p)] for n, p in model.named_parameters()} == {
        "embedding.weight": 1e-4,
        "layers.0.weight": 1e-4,
        "norm.weight": 0.0,
        "decoder.bias": 0.0,
    }


@pytest.mark.parametrize("config", [StableAdamW(), AdamW(), Muon()], ids=lambda c: c.name)
def test_a_step_is_only_skipped_whole(config):
    skipping = False
    models = [Tied(), Tied()]
    optimizers = [build_optimizer(config, m.named_parameters(), "cpu") for m in models]
    make_skippable(optimizers[0], lambda: skipping)
    for seed in (1, 2):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, seed)
    before = [p.clone() for p in models[0].parameters()]
    skipping = True
    step(models[0], optimizers[0], 3)
    assert all(map(torch.equal, before, models[0].parameters()))
    skipping = False

    def spoiled():
        nonlocal skipping
        next(models[0].parameters()).grad[:] = float("nan")
        skipping = True
        return 7.0

    # Composer's closures compute the gradients, so it is after them that a step is judged.
    assert optimizers[0].step(closure=spoiled) == 7.0
    assert all(map(torch.equal, before, models[0].parameters()))
    skipping = False
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 4)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert not torch.equal(before[0], next(models[0].parameters()))


@pytest.mark.parametrize("decay", [0, 0.005])
@pytest.mark.parametrize(
    "config",
    [StableAdamW(lr=0.3), AdamW(lr=0.3), Muon(lr=0.3, rest=Rest(lr=0.1, weight_decay=0.1))],
    ids=lambda c: c.name,
)
def test_the_rate_and_decay_that_are_told_are_the_configured_ones(config, decay):
    config = replace(config, weight_decay=decay)
    group = leading_group(build_optimizer(config, Tied().named_parameters(), "cpu"))
    assert (group["lr"], group["weight_decay"]) == (0.3, decay)


def test_no_norm_is_clipped_to_for_a_part_of_the_weights():
    with pytest.raises(ValueError, match=r"clip_norm 0.5 .* optimizer.clip_norm"):
        Rest(clip_norm=0.5)
    assert Rest(clip_norm=1.0).clip_norm is None  # as runs have stored it


@pytest.mark.parametrize("config", [StableAdamW(), AdamW(), Muon()], ids=lambda c: c.name)
def test_a_saved_optimizer_goes_on_as_if_it_had_not_been_saved(config):
    models = [Tied(), Tied()]
    one, other = (build_optimizer(config, m.named_parameters(), "cpu") for m in models)
    step(models[0], one, 0)
    models[1].load_state_dict(models[0].state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for model, optimizer in zip(models, (one, other), strict=True):
        step(model, optimizer, 1)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("config", [StableAdamW(), AdamW(), Muon()], ids=lambda c: c.name)
def test_groups_that_sharding_puts_in_place_of_the_first_are_stepped(config):
    """As Composer does, which swaps in each rank's parts once the optimizer is there."""
    model, spare = Tied(), Tied()
    optimizer = build_optimizer(config, spare.named_parameters(), "cpu")
    names = {weight: name for name, weight in spare.named_parameters()}
    weights = dict(model.named_parameters())
    groups = [
        {**group, "params": [weights[names[weight]] for weight in group["params"]]}
        for group in optimizer.param_groups
    ]
    optimizer.state.clear()
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    step(model, optimizer, 0)
    assert not [name for name, weight in weights.items() if torch.equal(weight, before[name])]


def test_the_decay_of_a_step_follows_the_rate():
    model = Tied()
    optimizer = build_optimizer(
        StableAdamW(lr=0.1, weight_decay=1e-4), model.named_parameters(), "cpu"
    )
    remember_peak(optimizer)
    set_rate(optimizer, 0.25)
    assert decay_of_step(optimizer) == pytest.approx(0.25e-4)
    optimizer = build_optimizer(AdamW(lr=0.1, weight_decay=0.01), model.named_parameters(), "cpu")
    assert decay_of_step(optimizer) == pytest.approx(1e-3)


def test_muon_takes_the_layers_matrices_and_moves_them_by_orthogonal_steps():
    model = Tied()
    optimizer = build_optimizer(Muon(lr=0.1, weight_decay=0.0), model.named_parameters(), "cpu")
    before = model.layers[0].weight.detach().clone()
    # Of full rank, which a few examples' gradient is not: a direction of no gradient stays still.
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    moved = (before - model.layers[0].weight.detach()) / (0.1 * 0.2 * math.sqrt(4))
    singular = torch.linalg.svdvals(moved)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert set(optimizer.state[model.layers[0].weight]) == {"momentum_buffer"}
    assert "exp_avg" in optimizer.state[model.embedding.weight]


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (8, 8)])
def test_orthogonalizing_maps_singular_values_and_keeps_their_vectors(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    u, values, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    expected = u @ torch.diag_embed(values) @ v
    torch.testing.assert_close(orthogonalized(matrices).double(), expected, atol=2e-5, rtol=0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_muon_steps_as_torchs_own_does_and_goes_on_from_its_state(adjust):
    """But for torch's bfloat16: the state is what runs begun with torch's Muon have stored."""
    generator = torch.Generator().manual_seed(5)
    start = [torch.randn(shape, generator=generator) for shape in [(12, 8), (12, 8), (8, 24)]]
    config = Muon(lr=0.02, weight_decay=0.1, adjust_lr=adjust)

    def ours(weights):
        named = {f"layers.{i}.weight": weight for i, weight in enumerate(weights)}
        spare = torch.nn.Parameter(torch.zeros(3))
        return build_optimizer(config, [*named.items(), ("norm.weight", spare)], "cpu")

    def steps(optimizer, weights, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()

    theirs = [torch.nn.Parameter(weight.clone()) for weight in start]
    peer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust)
    weights = [torch.nn.Parameter(weight.clone()) for weight in start]
    optimizer = ours(weights)
    steps(peer, theirs, range(3))
    steps(optimizer, weights, range(3))
    moved = [(w - s).norm() for w, s in zip(weights, start, strict=True)]
    apart = [(w - t).norm() for w, t in zip(weights, theirs, strict=True)]
    assert all(a < 0.02 * m for a, m in zip(apart, moved, strict=True))

    stored = copy.deepcopy(optimizer.state_dict())
    kept = peer.state_dict()
    stored["state"] |= copy.deepcopy(kept["state"])
    for weight, other in zip(weights, theirs, strict=True):
        weight.data.copy_(other.data)
    optimizer.load_state_dict(stored)
    before = [weight.detach().clone() for weight in weights]
    steps(peer, theirs, [9])
    steps(optimizer, weights, [9])
    moved = [(w - s).norm() for w, s in zip(weights, before, strict=True)]
    apart = [(w - t).norm() for w, t in zip(weights, theirs, strict=True)]
    assert all(a < 0.02 * m for a, m in zip(apart, moved, strict=True))


def test_every_mistake_of_a_section_is_named():
    with pytest.raises(ValueError) as error:
        StableAdamW(lr=0.0, weight_decay=0.1, betas=(0.9, 1.0))
    assert [line.split()[0] for line in str(error.value).splitlines()] == [
        "lr",
        "betas",
        "weight_decay",
    ]
