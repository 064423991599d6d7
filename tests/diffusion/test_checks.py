"""Wrong arguments are refused when a program is traced, with the shapes or values and the legal ones."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sds_jax.diffusion.distillation import inject, score_distillation
from sds_jax.diffusion.estimators import ESTIMATORS
from sds_jax.diffusion.guidance import cfg_diffusers, cfg_dreamfusion, guided, rescale
from sds_jax.diffusion.schedules import add_noise, flow_schedule, schedule_from_config
from sds_jax.diffusion.timesteps import SAMPLERS
from sds_jax.diffusion.variational import score_loss
from sds_jax.types import Schedule

X, KEY, SCHEDULE = jnp.zeros((2, 8, 8, 3)), jax.random.key(0), flow_schedule(100)
same = lambda params, z, t, cond: z  # noqa: E731


def distil(x=X, denoise=same, schedule=SCHEDULE, cond=None, key=KEY, **arguments):
  return score_distillation(denoise, None, schedule, x, key, cond, **arguments)


def refused(match, *arguments, **keywords):
  """Checks both transformations under which the library is used."""
  for transform in (jax.eval_shape, lambda f, x: jax.eval_shape(jax.grad(lambda x: f(x)[0]), x)):
    with pytest.raises(ValueError, match=match):
      x = keywords.get("x", X)
      transform(lambda x: distil(x, *arguments, **{k: v for k, v in keywords.items() if k != "x"}), x)


@pytest.mark.parametrize("prediction, match", [
  (lambda z: z[..., :1], r"\(2, 8, 8, 1\).*\(2, 8, 8, 3\)"), (lambda z: z[0], r"shape \(8, 8, 3\)"),
  (lambda z: jnp.concatenate([z, z], -1), r"\(2, 8, 8, 6\)"), (lambda z: jnp.float32(0), r"shape \(\)"),
  (lambda z: z.transpose(0, 3, 1, 2), r"\(2, 3, 8, 8\)"), (lambda z: (z, z), "a tuple"),
  (lambda z: dict(out=z), "dict"), (lambda z: None, "NoneType"), (lambda z: z.astype(jnp.int32), "int32")])
@pytest.mark.parametrize("wrap", ["plain", "guided", "score_loss", "vsd"])
def test_predictions(prediction, match, wrap):
  wrong = lambda params, z, t, cond: prediction(z)  # noqa: E731
  cond = dict(cond=jnp.ones(2), uncond=jnp.ones(2))
  match = match if wrap != "guided" else match.replace(r"\(2, 8, 8, ", r"\([24], 8, 8, ").replace(r"\(2, 3", r"\(4, 3")
  calls = dict(
    plain=lambda: distil(denoise=wrong), guided=lambda: distil(denoise=guided(wrong, "diffusers", 2.0), cond=cond),
    score_loss=lambda: score_loss(wrong, None, SCHEDULE, X, KEY, None),
    vsd=lambda: distil(estimator="vsd", options=dict(score_fn=wrong, score_params=None)))
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(calls[wrap])


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"hifa", "csd", "nfsd", "bridge"}))
def test_every_estimator_refuses_a_prediction_of_another_shape(name):
  options = dict(source_x=X, source_cond=None) if name in ("dds", "pds") else {}
  options = dict(score_fn=same, score_params=None) if name == "vsd" else options
  refused(r"\(2, 8, 8, 1\)", denoise=lambda params, z, t, cond: z[..., :1], estimator=name, options=options)


@pytest.mark.parametrize("shape", [(8, 8, 3), (16, 12, 4), (32, 32, 1), (64, 36, 3)])
def test_an_image_without_batch(shape):
  refused("without a batch axis", x=jnp.zeros(shape))
  with pytest.raises(ValueError, match="without a batch axis"):
    score_loss(same, None, SCHEDULE, jnp.zeros(shape), KEY, None)
  refused("without a batch axis", x=jnp.zeros(shape), t=jnp.array([3]), cond=jnp.zeros((77, 8)))
  jax.eval_shape(lambda: distil(jnp.zeros(shape), index=jnp.arange(shape[0])))  # sequences
  jax.eval_shape(lambda: distil(jnp.zeros(shape), cond=jnp.zeros(shape[0])))


@pytest.mark.parametrize("shape", [(2, 3), (5,), (4, 100, 3), (8, 8, 2), (2, 4, 4, 4, 3)])
def test_batches_of_other_things_are_legal(shape):
  jax.eval_shape(lambda: distil(jnp.zeros(shape)))


CASES = {
  "no example": (dict(x=jnp.zeros((0, 3))), r"x has shape \(0, 3\)"),
  "a scalar": (dict(x=jnp.zeros(())), r"x has shape \(\)"),
  "t a scalar": (dict(t=jnp.array(5)), r"t has shape \(\).*\(2,\)"),
  "t of one": (dict(t=jnp.array([5])), r"t has shape \(1,\).*\(2,\)"),
  "t a fraction": (dict(t=jnp.array([0.5, 0.5])), "float32.*integers"),
  "t too large": (dict(t=jnp.array([100, 3])), r"t holds 100; legal: .* 0 \.\. 99"),
  "t negative": (dict(t=np.array([3, -1])), "t holds -1"),
  "t a list": (dict(t=[3, 100]), "t holds 100"),
  "index of another length": (dict(index=jnp.arange(3)), r"index has shape \(3,\)"),
  "index a float": (dict(index=jnp.zeros(2)), "index has .*float32"),
  "steps": (dict(t_range=(20, 98)), r"0 <= low <= high <= 1, here \(0.2, 0.98\)"),
  "upside down": (dict(t_range=(0.98, 0.02)), "low <= high"),
  "negative": (dict(t_range=(-0.1, 0.5)), r"\(-0.1, 0.5\)"),
  "nan": (dict(t_range=(float("nan"), 0.5)), "nan"),
  "high only": (dict(t_range=jnp.array([0.5, 1.5])), "1.5"),
  "one number": (dict(t_range=0.5), "t_range=0.5 is not legal"),
  "three numbers": (dict(t_range=(0.1, 0.2, 0.3)), "is not legal"),
  "words": (dict(t_range=("a", "b")), "is not legal"),
  "no range": (dict(t_range=None), "t_range=None is not legal"),
  "lengths": (dict(schedule=Schedule(jnp.ones(10), jnp.ones(7))), r"\(10,\) and schedule.sigma \(7,\)"),
  "no times": (dict(schedule=Schedule(np.ones(0), np.ones(0))), r"\(0,\)"),
  "scalars": (dict(schedule=Schedule(0.5, 0.5)), r"one shape \(T,\)"),
  "columns": (dict(schedule=Schedule(np.ones((9, 1)), np.ones((9, 1)))), r"\(9, 1\)"),
  "no schedule": (dict(schedule=None), "NoneType; legal: a Schedule"),
  "scale per pixel": (dict(scale=jnp.ones((2, 1))), r"scale has shape \(2, 1\)"),
  "scale a list": (dict(scale=[1.0, 2.0]), "scale is"),
  "clip_norm of three": (dict(clip_norm=jnp.ones(3)), r"clip_norm has shape \(3,\)"),
  "clip_norm negative": (dict(clip_norm=-1.0), "clip_norm is -1.0; legal: .* at least 0"),
  "weighting of pixels": (dict(weighting=lambda s, t: jnp.ones((2, 1))), r"returned shape \(2, 1\)"),
  "weighting a number": (dict(weighting=0.5), "0.5 is not known"),
  "weighting a list": (dict(weighting=["sigma2"]), "is not known"),
  "no estimator": (dict(estimator=None), "estimator=None is not legal"),
  "hifa": (dict(estimator="hifa"), "second term"),
  "no key": (dict(key=0), "key is int"),
  "pure noise": (dict(weighting="sigma_over_alpha", t_range=(0.0, 1.0)), "infinite at t=99, where alpha is 0"),
  "pure noise given": (dict(weighting="sigma_over_alpha", t=jnp.array([99, 5])), "times below 99"),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments(name):
  arguments, match = CASES[name]
  refused(match, **arguments)


def test_integer_images():
  with pytest.raises(ValueError, match="x is of type uint8"):
    distil(np.zeros((2, 8, 8, 3), np.uint8))


def test_what_is_known_under_jit_is_checked_and_traced_values_pass():
  with pytest.raises(ValueError, match="t holds"):
    jax.eval_shape(jax.jit(lambda x: distil(x, t=np.array([0, 700]))), X)
  with pytest.raises(ValueError, match=r"traced, 3"):
    jax.eval_shape(lambda low: distil(t_range=(low, 3.0)), jnp.float32(0))
  jax.eval_shape(lambda t, low: (distil(t=t), distil(t_range=(low, 0.5))), jnp.array([0, 700]), jnp.float32(0))
  for sample in SAMPLERS.values():
    with pytest.raises(ValueError, match="t_range"):
      sample(KEY, jnp.arange(2), (20, 98), 100, 2)


GUIDED = guided(lambda params, z, t, cond: z, "diffusers", 2.0)


@pytest.mark.parametrize("name", ["sds", "csd", "asd", "ism", "cds"])
@pytest.mark.parametrize("cond", [None, jnp.ones(2), dict(cond=jnp.ones(2)), (jnp.ones(2), jnp.ones(2)), "a cat"])
def test_a_guided_denoiser_without_its_conditions(name, cond):
  with pytest.raises(ValueError, match=r"takes cond=dict\(cond=..., uncond=...\)"):
    jax.eval_shape(lambda: distil(denoise=GUIDED, cond=cond, estimator=name))


@pytest.mark.parametrize("cond, match", [
  (dict(cond=jnp.ones(1), uncond=jnp.ones(1)), r"shape \(1,\), but there are 2 examples"),
  (dict(cond=0.5, uncond=0.5), r"shape \(\), but there are 2"),
  (dict(cond="a cat", uncond=""), r"shape \(\), but there are 2"),
  (dict(cond=jnp.ones(2), uncond=jnp.ones((2, 1))), "same structure and shapes"),
  (dict(cond=jnp.ones(2), uncond=jnp.ones(2), negatives=(jnp.ones(2),), weights=jnp.ones(2)), r"legal: \(2, 1\)")])
def test_conditions_of_other_shapes(cond, match):
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(lambda: distil(denoise=GUIDED, cond=cond))


@pytest.mark.parametrize("combine", [cfg_diffusers, cfg_dreamfusion, rescale])
def test_factors_of_guidance(combine):
  with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
    combine(X, X, jnp.ones((2, 1)))
  with pytest.raises(ValueError, match="scale='7.5' of guidance"):
    guided(same, "diffusers", "7.5")


@pytest.mark.parametrize("result, match", [
  (lambda x: (x, dict(eps_hat=x)), "returned no x0_hat"), (lambda x: x, "legal: "), (lambda x: (x, x), "legal"),
  (lambda x: (x, {}), "returned no eps_hat"), (lambda x: (x[..., :1], dict(eps_hat=x, x0_hat=x)), "residual of"),
  (lambda x: (x, dict(eps_hat=x[0], x0_hat=x)), r"eps_hat of the estimator 'mine' has shape \(8, 8, 3\)"),
  (lambda x: (x, dict(eps_hat=x, x0_hat=x, t=jnp.zeros(3, jnp.int32))), "t of the estimator")])
def test_an_estimator_of_ones_own(result, match):
  def mine(denoise_fn, params, schedule, x, t, eps, cond, keys):
    return result(x)

  refused(match, estimator=mine)


def test_sources_of_other_shapes():
  shared, other = dict(source_x=X[:1], source_cond=None), dict(source_x=X, source_cond=X)
  for options, match in ((shared, "eps"), (other, "source_cond")):
    with pytest.raises(ValueError, match=match):
      jax.eval_shape(lambda: distil(estimator="dds", options=options))


def test_functions_of_the_module():
  for call, match in [
      (lambda: add_noise(SCHEDULE, X, X[..., :1], jnp.zeros(2, jnp.int32)), "eps"),
      (lambda: add_noise(SCHEDULE, X, X, jnp.zeros(3, jnp.int32)), r"t \(3,\)"),
      (lambda: flow_schedule(0), "num_steps=0"), (lambda: flow_schedule(10.0), "num_steps=10.0"),
      (lambda: inject(jnp.arange(2), jnp.arange(2)), "floating"),
      (lambda: schedule_from_config(dict(num_train_timesteps=1, rescale_betas_zero_snr=True)), "two times")]:
    with pytest.raises(ValueError, match=match):
      call()
