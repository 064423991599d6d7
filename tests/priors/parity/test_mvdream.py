"""MVDream's folder, read by us, against the network written once more in PyTorch."""
import functools
import gc
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sds_jax.priors import prior as prior_lib
from sds_jax.priors.families import mvdream
from sds_jax.priors.loading import checkpoint
from sds_jax.priors.networks.multiview_unet import MultiViewUNetModel
from sds_jax.views import cameras

# The published config.json but for its widths.
FULL = dict(_class_name="MultiViewUNetModel", _diffusers_version="0.25.0", attention_resolutions=[4, 2, 1],
            camera_dim=16, channel_mult=[1, 2, 4, 4], context_dim=1024, image_size=32, in_channels=4,
            model_channels=320, num_head_channels=64, num_res_blocks=2, out_channels=4, transformer_depth=1)
SMALL = FULL | dict(attention_resolutions=[1], channel_mult=[1, 2], context_dim=12, image_size=8,
                    model_channels=32, num_head_channels=16, num_res_blocks=1)


def make_unet(torch, config):
  """Returns a module (z [N, C, H, W], t [N], text [N, T, D], camera [N, 16], views) -> eps [N, C, H, W]."""
  nn, functional = torch.nn, torch.nn.functional
  width, emb = config["model_channels"], 4 * config["model_channels"]

  def conv(inside, outside, stride=1):
    return nn.Conv2d(inside, outside, 3, stride, 1)

  class Residual(nn.Module):
    def __init__(self, inside, outside):
      super().__init__()
      self.in_layers = nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), conv(inside, outside))
      self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outside))
      self.out_layers = nn.Sequential(nn.GroupNorm(32, outside), nn.SiLU(), nn.Identity(), conv(outside, outside))
      self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x, time, *_):
      return self.skip_connection(x) + self.out_layers(self.in_layers(x) + self.emb_layers(time)[..., None, None])

  class Attention(nn.Module):
    def __init__(self, channels, context):
      super().__init__()
      self.heads = channels // config["num_head_channels"]
      self.to_q = nn.Linear(channels, channels, bias=False)
      self.to_k, self.to_v = (nn.Linear(context, channels, bias=False) for _ in range(2))
      self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())

    def forward(self, x, context):
      q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                 for layer, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context)))
      weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
      return self.to_out((weights @ v).transpose(1, 2).flatten(2))

  class Gated(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x):
      value, gate = self.proj(x).chunk(2, -1)
      return value * functional.gelu(gate)

  class FeedForward(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.net = nn.Sequential(Gated(channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, x):
      return self.net(x)

  class Block(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.attn1, self.attn2 = Attention(channels, channels), Attention(channels, config["context_dim"])
      self.ff = FeedForward(channels)
      self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x, text, views):
      # The tokens of all views of an object side by side: every token sees every other.
      together = self.norm1(x).unflatten(0, (-1, views)).flatten(1, 2)
      x = x + self.attn1(together, together).unflatten(1, (views, -1)).flatten(0, 1)
      x = x + self.attn2(self.norm2(x), text)
      return x + self.ff(self.norm3(x))

  class Transformer(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.norm = nn.GroupNorm(32, channels, eps=1e-6)
      self.proj_in, self.proj_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
      self.transformer_blocks = nn.ModuleList([Block(channels) for _ in range(config["transformer_depth"])])

    def forward(self, x, time, text, views):
      tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
      for block in self.transformer_blocks:
        tokens = block(tokens, text, views)
      return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])

  class Down(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.op = conv(channels, channels, 2)

    def forward(self, x, *_):
      return self.op(x)

  class Up(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.conv = conv(channels, channels)

    def forward(self, x, *_):
      return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))

  class First(nn.Conv2d):
    def forward(self, x, *_):
      return super().forward(x)

  class UNet(nn.Module):
    def __init__(self):
      super().__init__()
      self.time_embed, self.camera_embed = (
        nn.Sequential(nn.Linear(inside, emb), nn.SiLU(), nn.Linear(emb, emb))
        for inside in (width, config["camera_dim"]))
      attends = [2**level in config["attention_resolutions"] for level in range(len(config["channel_mult"]))]
      channels, skips = width, [width]
      blocks = [[First(config["in_channels"], width, 3, 1, 1)]]
      for level, factor in enumerate(config["channel_mult"]):
        for _ in range(config["num_res_blocks"]):
          blocks.append([Residual(channels, factor * width)] + [Transformer(factor * width)] * attends[level])
          channels = factor * width
          skips.append(channels)
        if level + 1 < len(config["channel_mult"]):
          blocks.append([Down(channels)])
          skips.append(channels)
      self.input_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
      self.middle_block = nn.ModuleList([Residual(channels, channels), Transformer(channels),
                                         Residual(channels, channels)])
      blocks = []
      for level, factor in reversed(list(enumerate(config["channel_mult"]))):
        for layer in range(config["num_res_blocks"] + 1):
          block = [Residual(channels + skips.pop(), factor * width)]
          channels = factor * width
          block += [Transformer(channels)] * attends[level]
          block += [Up(channels)] * (level > 0 and layer == config["num_res_blocks"])
          blocks.append(block)
      self.output_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
      self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), conv(channels, config["out_channels"]))

    def forward(self, z, t, text, camera, views):
      frequency = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
      angle = t[:, None].float() * frequency[None]
      time = self.time_embed(torch.cat([torch.cos(angle), torch.sin(angle)], -1)) + self.camera_embed(camera)
      skips = []

      def through(block, x):
        for layer in block:
          x = layer(x, time, text, views)
        return x

      for block in self.input_blocks:
        z = through(block, z)
        skips.append(z)
      z = through(self.middle_block, z)
      for block in self.output_blocks:
        z = through(block, torch.cat([z, skips.pop()], 1))
      return self.out(z)

  return UNet()


def write_unet(torch, folder, config, dtype=np.float32):
  """Writes the folder of a random network; returns the network in PyTorch."""
  torch.manual_seed(0)
  theirs = make_unet(torch, config).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      if parameter.ndim == 1:  # norms begin as the identity, which would hide mistakes
        parameter.add_(0.1 * torch.randn(parameter.shape))
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  save_file({name: value.numpy().astype(dtype) for name, value in theirs.state_dict().items()},
            folder / "diffusion_pytorch_model.safetensors")
  return theirs


def draw(config, views=4, objects=2):
  """Returns z, t, text and cameras of a batch: one t an object."""
  rng, batch, side = np.random.default_rng(0), views * objects, config["image_size"]
  z = rng.normal(size=(batch, side, side, 4)).astype(np.float32)
  text = rng.normal(size=(batch, 7, config["context_dim"])).astype(np.float32)
  azimuths, _ = np.meshgrid(np.arange(views) * np.pi / 2 + 0.3, np.arange(objects))
  camera = mvdream.camera_matrix(jax.vmap(lambda a: cameras.orbit(a, 0.2, 2.5, 0.7))(jnp.asarray(azimuths.ravel())))
  return z, np.repeat([900, 30], views)[:batch], text, np.array(camera)


def theirs_of(torch, model, inputs, views=4):
  z, t, text, camera = map(torch.from_numpy, inputs)
  with torch.no_grad():
    return model(z.permute(0, 3, 1, 2), t, text, camera, views).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def small(torch, tmp_path_factory):
  """(folder of the U-Net, the network in PyTorch, inputs)"""
  folder = tmp_path_factory.mktemp("mvdream") / "unet"
  return folder, write_unet(torch, folder, SMALL), draw(SMALL)


def open_unet(folder, dtype):
  config = json.loads((folder / "config.json").read_text())
  return checkpoint.read_component(folder, mvdream.unet_component(config), dtype)


@pytest.fixture(scope="module")
def compiled(small):
  """dtype -> (z, t, text, camera) -> prediction, compiled quickly and once."""
  folder, _, inputs = small

  @functools.lru_cache(maxsize=None)
  def of(dtype):
    ours, params = open_unet(folder, dtype)
    run = jax.jit(ours.apply).lower({"params": params}, *inputs).compile({"xla_backend_optimization_level": 0})
    return lambda *inputs: np.asarray(run({"params": params}, *inputs), np.float32)

  return of


@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"])
def test_four_views_against_torch(torch, small, relative_error, compiled, dtype, limit):
  _, model, inputs = small
  expected = theirs_of(torch, model, inputs)
  assert np.linalg.norm(compiled(dtype)(*inputs) - expected) < limit * np.linalg.norm(expected)
  # Ignoring the other views, or the cameras, is told apart.
  apart, blind = theirs_of(torch, model, inputs, 1), theirs_of(torch, model, (*inputs[:3], 0 * inputs[3]))
  assert min(relative_error(other, expected) for other in (apart, blind)) > 1e-2


def test_views_of_one_object_see_each_other_and_no_others(small, compiled):
  z, *others = small[2]
  run = compiled(jnp.float32)
  changed = np.abs(run(z, *others) - run(z + np.eye(8, dtype=np.float32)[1][:, None, None, None], *others))
  changed = changed.max((1, 2, 3))
  assert changed[:4].min() > 1e-4 and changed[4:].max() == 0.0


def test_names_and_sizes_of_the_published_network(torch):
  """All names and shapes, and 867.6 million parameters, without memory for a weight."""
  with torch.device("meta"):
    state = make_unet(torch, FULL).state_dict()
  ours = MultiViewUNetModel.from_config(FULL)
  table, shapes = mvdream.stored_names(ours), checkpoint.abstract_params(ours)
  assert {name: checkpoint.names.checkpoint_shape(path, shapes[path].shape)
          for name, path in checkpoint.names.flax_paths(shapes, table).items()} == {
            name: tuple(value.shape) for name, value in state.items()}
  assert sum(leaf.size for leaf in shapes.values()) == 867_572_164
  random = prior_lib.open_prior("mvdream", random_weights=True)[1].networks["unet"]
  assert checkpoint.abstract_params(random) == shapes


@pytest.mark.full_size
@pytest.mark.timeout(3600)
def test_full_width(torch, figures, tmp_path):
  expected_of = draw(FULL | dict(image_size=16), objects=1)
  model = write_unet(torch, tmp_path / "unet", FULL, np.float16)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.copy_(parameter.half().float())
  expected = theirs_of(torch, model, expected_of)
  del model
  gc.collect()
  for dtype, limit in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-2)):
    ours, params = open_unet(tmp_path / "unet", dtype)
    assert figures(str(jnp.dtype(dtype)), jax.jit(ours.apply)({"params": params}, *expected_of), expected) < limit
    del params
    gc.collect()
