"""Estimators that are a row of coefficients, against a network recomputed in float64 and sums written out by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.estimators.linear import bridge, csd, linear, nfsd, score, sds
from sds_jax.diffusion.guidance import guided

ROWS = dict(sds=sds, score=score, csd=csd, nfsd=nfsd, bridge=bridge)
BATCH, OMEGA = 7, 6.5
TIMES = np.array([0, 60, 199, 200, 201, 640, 999])
GUIDANCE = [("dreamfusion", OMEGA), ("diffusers", 1 + OMEGA)]
"""One guidance in both conventions."""
APART = {"csd": "cond, uncond", "nfsd": "guided, negative", "bridge": "guided, uncond"}
"""Estimators that ask for single sides with no option set, and what they ask for."""


@pytest.fixture(scope="module")
def inputs():
  """x, eps [B, 6], t [B], and a condition with a negative side."""
  rng = np.random.default_rng(3)
  array = lambda width: jnp.asarray(rng.normal(size=(BATCH, width)), jnp.float32)  # noqa: E731
  cond = dict(cond=array(3), uncond=array(3), negative=array(3))
  return array(6), jnp.asarray(TIMES, jnp.int32), array(6), cond


@pytest.fixture(scope="module")
def said(schedule, network, inputs):
  """What the network says under each side of the condition, in numpy and float64; eps and z_t beside it."""
  params = {name: np.asarray(leaf, np.float64) for name, leaf in network[1].items()}
  x, t, eps, cond = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), inputs)
  alpha = np.asarray(schedule.alpha, np.float64)[TIMES][:, None]
  z = alpha * x + np.sqrt(1 - alpha**2) * eps
  answer = lambda c: np.tanh(z @ params["z"] + c @ params["c"] + t[:, None] / 1000) @ params["out"]  # noqa: E731
  return dict({side: answer(c) for side, c in cond.items()}, eps=eps, z=z, alpha=alpha)


@pytest.fixture(scope="module")
def run(schedule, network, inputs):
  """(name, convention, scale, options) -> (residual, seen), under jit."""
  denoise, params = network
  x, t, eps, cond = inputs

  def of(name, convention="dreamfusion", scale=OMEGA, **options):
    estimate = jax.jit(lambda x, eps: ESTIMATORS[name](guided(denoise, convention, scale), params, schedule, x, t, eps,
                                                       cond, None, **options))
    return estimate(x, eps)

  return of


def assert_close(found, expected):
  """Guided predictions are of size 100; a wrong side or sign is off by more than 1."""
  np.testing.assert_allclose(found, expected, rtol=3e-4, atol=3e-3)


def steered(said):
  """eps_guided at OMEGA, written as neither convention has it."""
  return (1 + OMEGA) * said["cond"] - OMEGA * said["uncond"]


@pytest.mark.parametrize("convention, scale", GUIDANCE)
def test_sds_is_the_prior_plus_omega_times_the_classifier(run, said, convention, scale):
  """eps_guided - eps = (eps_c - eps) + omega (eps_c - eps_u), example by example."""
  residual, seen = run("sds", convention, scale)
  classifier, _ = run("csd", convention, scale)
  assert_close(residual, said["cond"] - said["eps"] + OMEGA * np.asarray(classifier, np.float64))
  assert_close(residual, steered(said) - said["eps"])
  assert_close(seen["eps_hat"], steered(said))
  clean = (said["z"] - np.sqrt(1 - said["alpha"] ** 2) * steered(said)) / said["alpha"]
  np.testing.assert_allclose(seen["x0_hat"], clean, rtol=2e-3, atol=2e-3 / said["alpha"].min())


@pytest.mark.parametrize("convention, scale", GUIDANCE)
def test_score_is_sds_with_the_noise_left_in(run, said, convention, scale):
  residual, _ = run("score", convention, scale)
  assert_close(residual, steered(said))
  assert_close(residual - run("sds", convention, scale)[0], said["eps"])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("convention, scale", GUIDANCE)
def test_csd_by_hand(run, said, convention, scale, weight):
  """(eps_c - eps_u) - w2 (eps_n - eps_u); guidance has no part in it."""
  residual, seen = run("csd", convention, scale, negative_weight=weight)
  assert_close(residual, said["cond"] - said["uncond"] - weight * (said["negative"] - said["uncond"]))
  assert_close(seen["eps_hat"], said["cond"])


def test_csd_takes_a_traced_weight_and_one_for_each_example(run, said):
  weights = np.linspace(-1.0, 2.0, BATCH)
  residual, _ = run("csd", negative_weight=jnp.asarray(weights, jnp.float32))
  gap = said["negative"] - said["uncond"]
  assert_close(residual, said["cond"] - said["uncond"] - weights[:, None] * gap)


@pytest.mark.parametrize("convention, scale", GUIDANCE)
@pytest.mark.parametrize("until", [0.2, 0.5, 0.0])
def test_nfsd_on_both_sides_of_its_threshold(run, said, convention, scale, until):
  """s (eps_c - eps_u) + eps_u at little noise; s (eps_c - eps_u) + (eps_u - eps_n) from the threshold on."""
  options = {} if until == 0.2 else dict(null_until=until)  # 0.2 is what it has by itself
  residual, _ = run("nfsd", convention, scale, **options)
  late = (TIMES >= 1000 * until)[:, None]
  domain = np.where(late, said["uncond"] - said["negative"], said["uncond"])
  assert_close(residual, (1 + OMEGA) * (said["cond"] - said["uncond"]) + domain)
  assert late.sum() == {0.2: 4, 0.5: 2, 0.0: BATCH}[until]


@pytest.mark.parametrize("convention, scale", GUIDANCE)
def test_bridge_is_sds_before_and_a_difference_of_prompts_after(run, said, convention, scale):
  before, _ = run("bridge", convention, scale, bridged=0.0)
  np.testing.assert_array_equal(before, run("sds", convention, scale)[0])
  expected = (1 + OMEGA) * (said["cond"] - said["uncond"])
  assert_close(run("bridge", convention, scale)[0], expected)
  assert_close(run("bridge", convention, scale, bridged=jnp.float32(1))[0], expected)
  assert_close(run("bridge", convention, scale, bridged=jnp.float32(0))[0], before)


def test_a_row_of_ones_own(schedule, network, inputs, said):
  """Every term at once, one coefficient an example's own and one that grows with time."""
  denoise, params = network
  x, t, eps, cond = inputs

  def row(time, *, tilt):
    return dict(guided=0.5, cond=time, uncond=tilt, negative=3.0, eps=-2.0)

  tilt = jnp.arange(BATCH, dtype=jnp.float32)
  residual, _ = linear(row)(guided(denoise, "diffusers", 1 + OMEGA), params, schedule, x, t, eps, cond, tilt=tilt)
  expected = (0.5 * steered(said) + (TIMES / 1000)[:, None] * said["cond"] + np.arange(BATCH)[:, None] * said["uncond"]
              + 3 * said["negative"] - 2 * said["eps"])
  assert_close(residual, expected)


@pytest.mark.parametrize("name, options, sides", [
  ("sds", {}, 2), ("score", {}, 2), ("bridge", dict(bridged=1.0), 2), ("csd", {}, 2),
  ("csd", dict(negative_weight=0.5), 3), ("nfsd", {}, 3)])
def test_one_call_that_asks_no_more_sides_than_needed(schedule, network, inputs, name, options, sides):
  x, t, eps, cond = inputs
  sizes = []

  def counted(params, z, t, cond):
    sizes.append((z.shape[0], t.shape[0], cond.shape[0]))
    return network[0](params, z, t, cond)

  denoise = guided(counted, "diffusers", 3.0)
  jax.eval_shape(lambda: ESTIMATORS[name](denoise, network[1], schedule, x, t, eps, cond, None, **options))
  assert sizes == [(sides * BATCH,) * 3]


@pytest.mark.parametrize("name", ["sds", "score", "bridge"])
def test_a_denoiser_without_guidance_serves_where_no_side_is_asked_apart(schedule, network, inputs, said, name):
  x, t, eps, cond = inputs
  options = dict(bridged=0.0) if name == "bridge" else {}
  residual, _ = ESTIMATORS[name](network[0], network[1], schedule, x, t, eps, cond["cond"], None, **options)
  assert_close(residual, said["cond"] - (0 if name == "score" else said["eps"]))


@pytest.mark.parametrize("name", APART)
def test_single_sides_need_a_guided_denoiser(schedule, network, inputs, name):
  x, t, eps, cond = inputs
  with pytest.raises(ValueError, match=f"asks for {APART[name]} apart: give it a denoiser of guidance.guided"):
    ESTIMATORS[name](network[0], network[1], schedule, x, t, eps, cond, None)


@pytest.mark.parametrize("name, options", [("nfsd", {}), ("csd", dict(negative_weight=0.5))])
def test_a_negative_prompt_that_is_missing(schedule, network, inputs, name, options):
  x, t, eps, cond = inputs
  cond = {side: cond[side] for side in ("cond", "uncond")}
  with pytest.raises(ValueError, match=r"negative prompt, but cond has only cond, uncond: add cond\['negative'\]"):
    ESTIMATORS[name](guided(network[0], "diffusers", 2.0), network[1], schedule, x, t, eps, cond, None, **options)


@pytest.mark.parametrize("name", APART)
def test_a_condition_that_is_no_dictionary_of_sides(schedule, network, inputs, name):
  x, t, eps, cond = inputs
  lacking = dict(cond=cond["cond"], negative=cond["negative"])
  with pytest.raises(ValueError, match=r"takes cond=dict\(cond=..., uncond=...\)"):
    ESTIMATORS[name](guided(network[0], "diffusers", 2.0), network[1], schedule, x, t, eps, lacking, None)


@pytest.mark.parametrize("name, options, total", [
  ("sds", {}, [0, 0]), ("score", {}, [1, 1]), ("csd", {}, [0, 0]), ("csd", dict(negative_weight=0.3), [0, 0]),
  ("nfsd", {}, [1, 0]), ("bridge", dict(bridged=0.0), [0, 0]), ("bridge", {}, [0, 0])])
def test_coefficients_sum_to_nothing_but_where_noise_is_left_in(name, options, total):
  """Before and after NFSD's threshold at 0.2: what all predictions say alike cancels out."""
  row = ROWS[name](jnp.array([0.19, 0.2]), **options)
  np.testing.assert_allclose(np.zeros(2) + sum(row.values()), total, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_an_option_that_no_row_has(run, name):
  with pytest.raises(TypeError, match="no_such"):
    run(name, no_such=1.0)
