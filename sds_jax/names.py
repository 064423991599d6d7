"""The nearest real name of a setting or flag that does not exist.

Names are compared by the habits of other programs and by spelling.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

HABITS: dict[str, str] = {
    "prompt": "prompt text caption sentence description p",
    "negative_prompt": "negative neg neg_prompt n_prompt uncond_prompt",
    "prompts_file": "prompts prompt_file prompts_path prompt_path prompt_list",
    "image": "img picture photo input input_image image_path img_path image_file file rgb",
    "picture.elevation_deg": "elevation elev default_elevation elevation_deg ref_elevation",
    "picture.azimuth_deg": "azimuth default_azimuth ref_azimuth",
    "seed": "random_seed rng manual_seed rng_seed",
    "workdir": "out output outdir output_dir out_dir output_path save_dir save_path save_to dest dir folder logdir "
               "log_dir workspace run_dir exp_dir exp_root_dir result_dir results o",
    "resume": "resume_from load restart restore continue_from overwrite",
    "prior.path": "model_path prior_path pretrained_path weights_path checkpoint_path ckpt_path model_dir",
    "prior.name": "model model_id model_name model_key pretrained pretrained_model pretrained_model_name_or_path "
                  "checkpoint ckpt weights hf_key hf_model sd sd_version version diffusion prior",
    "prior.variant": "variant weights_variant model_variant",
    "prior.controlnet": "controlnet control controlnet_model control_net",
    "prior.lora": "lora loras lora_path lora_weights lora_weights_path lora_file lora_dir lora_name lora_scale",
    "prior.embeddings": "textual_inversion textual_inversions embedding embeddings learned_embeds",
    "prior.dtype": "dtype precision fp16 half bf16 bfloat16 mixed_precision",
    "distillation.guidance_scale": "guidance guidance_scale cfg cfg_scale cfg_weight classifier_free_guidance scale w",
    "distillation.estimator": "estimator method algorithm algo loss_type guidance_type sds vsd sjc mode_type",
    "distillation.weighting": "weighting weighting_strategy",
    "distillation.t_min": "t_range min_step min_step_percent t_start tmin",
    "distillation.t_max": "max_step max_step_percent t_end tmax",
    "distillation.view_words": "dir_text suffix view_dependent_prompt view_prompts",
    "distillation.perp_neg": "perpneg perp_neg",
    "optimizer.name": "optim optimizer_name adam",
    "optimizer.learning_rate": "lr learning_rate step_size base_lr lr_init alpha",
    "optimizer.warmup_steps": "warmup warmup_iters lr_warmup_steps",
    "optimizer.clip_norm": "grad_clip clip clip_grad gradient_clip max_grad_norm grad_clip_norm",
    "optimizer.ema_decay": "ema ema_rate",
    "training.steps": "steps step iters iter iterations iteration num_steps n_steps nsteps max_steps num_iters "
                      "max_iters n_iters niter train_steps total_steps epochs num_epochs epoch max_iterations "
                      "num_iterations",
    "training.views": "batch batch_size bs num_views n_views batchsize views train_batch_size",
    "training.particles": "n_particles num_particles particles",
    "training.log_every": "log_interval log_freq log_steps log_every_n_steps",
    "training.checkpoint_every": "save_every ckpt_every save_interval checkpoint_interval save_steps eval_interval",
    "training.render_every": "vis_every preview_every val_interval render_interval val_check_interval",
    "parallel.devices": "devices gpus num_gpus gpu gpu_ids device num_devices cuda",
    "generator.size": "size resolution res image_size img_size height width h w_size hw",
    "render.height": "resolution res size image_size img_size height width h wh image_height image_width hw",
    "render.num_samples": "samples n_samples num_samples num_samples_per_ray samples_per_ray",
    "camera.fov_deg": "fov fovy fov_deg fovy_range focal_length",
    "camera.distance": "radius distance camera_distance radius_range camera_distance_range",
    "camera.elevation_deg": "elevation elevation_range elevation_deg theta_range",
    "field.name": "field nerf representation backbone geometry model_type",
    "background.name": "bg background bg_color bg_colour background_color bg_radius",
    "generator.name": "generator parameterization",
    "export.mesh_resolution": "mesh mesh_res mesh_resolution grid_size mcubes_resolution mc_resolution "
                              "isosurface_resolution",
    "export.mesh_threshold": "threshold density_thresh isosurface_threshold iso",
    "export.faces": "num_faces max_faces decimate_target target_faces",
    "export.texture_size": "texture_resolution texture_res",
    "export.formats": "format fmt save_format mesh_format",
    "export.image_size": "export_size out_size render_size",
    "export.turntable_frames": "frames n_frames num_frames video turntable",
    "distillation.vsd.rank": "lora_rank rank",
}
"""A setting -> names that other programs have for it."""


def nearest_setting(path: str, settings: Iterable[str]) -> str | None:
  """Returns the setting that an unknown dotted path probably meant, or None.

  A habitual name counts before spelling, the own group before other groups, and a short path before a long one.

  >>> tree = ["prompt", "training.steps", "optimizer.learning_rate", "render.height", "distillation.ism.steps"]
  >>> [nearest_setting(path, tree) for path in ("steps", "lr", "render.heigth", "train.learning-rate", "zzz")]
  ['training.steps', 'optimizer.learning_rate', 'render.height', 'optimizer.learning_rate', None]
  """
  known = list(settings)
  group, leaf = _split(path)
  scores = {name: _score(group, leaf, name, known) for name in known}
  best = max(scores, key=lambda name: (scores[name], -name.count("."), -len(name)), default=None)
  return best if best is not None and scores[best] >= 0.7 else None


def _score(group: str, leaf: str, name: str, known: list[str]) -> float:
  """Returns how near a setting is to an unknown one.

  The score is above 2 for a setting's habitual names, and above 3 within its own group.
  """
  own_group, own_leaf = _split(name)
  likeness = _likeness(leaf, own_leaf)
  if any(other.startswith(f"{name}.") for other in known):
    return likeness - 0.2  # a group
  within = bool(group) and (own_group == group or own_group.endswith(f".{group}"))
  if within and (likeness >= 0.75 or leaf in own_leaf.split("_")):
    return 3.0 + likeness
  habit = max((_likeness(leaf, word) for word in HABITS.get(name, "").split()), default=0.0)
  if habit == 1.0 or likeness == 1.0:
    return 2.0 + habit
  return max(habit - 0.1, likeness + 0.15 * (own_group == group)) - 0.02 * name.count(".")


def habitual(name: str, settings: Iterable[str]) -> str | None:
  """Returns the setting that other programs call `name`, or None.

  >>> habitual("cfg-scale", ["prompt", "distillation.guidance_scale"])
  'distillation.guidance_scale'
  """
  leaf = _split(name)[1]
  return next((path for path in settings if any(_likeness(leaf, word) == 1.0 for word in HABITS.get(path, "").split())),
              None)


def nearest(name: str, known: Iterable[str]) -> str | None:
  """Returns the name of nearly the same spelling, or None.

  >>> nearest("wrkdir", ["workdir", "mode"])
  'workdir'
  """
  return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)), None)


def _split(path: str) -> tuple[str, str]:
  group, _, leaf = re.sub(r"\[.*", "", path.lower().replace("-", "_")).rpartition(".")
  return group, leaf


def _likeness(a: str, b: str) -> float:
  return 1.0 if a.replace("_", "") == b.replace("_", "") else difflib.SequenceMatcher(None, a, b).ratio()
