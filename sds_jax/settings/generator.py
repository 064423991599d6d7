"""Settings of what is optimized: `generator`. Of image2d, one group for each parameterization of an image."""
from __future__ import annotations

import dataclasses

from sds_jax.schema import Legal, above, even, finite, group, number, one_of, setting, whole

FIELD = "field"
"""The name of the package's own 3D representation: the groups `field`, `background`, `render` and `occupancy`."""

PLAIN = ("pixels", "fourier", "cppn", "siren", "gaussians")
"""Parameterizations of one opaque image, which `symmetric` can mirror."""

IMAGE_GENERATORS = (*PLAIN, "shared", "symmetric", "translucent", "texture")
"""Parameterizations of images; each has a group of settings of the same name."""

SOLIDS = ("sphere", "cube")
"""Solids that have a texture."""

_USERS_OWN = "package.module:function of your own"
_STD, _DECAY = number(0.0, 100.0), number(0.0, 4.0)


def is_users_own(name: str) -> bool:
  """Returns whether a generator's name has the form package.module:function."""
  # Neither side of the colon may be empty.
  return 0 < name.find(":") < len(name) - 1


def _generator_name(names: tuple[str, ...]) -> Legal:
  return Legal(lambda v: v in names or is_users_own(v), f"one of {', '.join(names)}, or {_USERS_OWN}")


@dataclasses.dataclass(frozen=True)
class ObjectGeneratorSettings:
  """The 3D representation that is optimized.

  A name package.module:function calls function(size) with the side of the training renders in pixels; the function
  returns a 3D representation of your own. It is composited over `background`. `field`, `occupancy` and `shading` have
  no effect on it.
  """
  name: str = setting(FIELD, _generator_name((FIELD,)), "the package's field, or a 3D representation of your own")


@dataclasses.dataclass(frozen=True)
class PixelsSettings:
  """One logit for each channel of a pixel."""
  init_std: float = setting(0.1, _STD, "standard deviation of the initial logits")


@dataclasses.dataclass(frozen=True)
class FourierSettings:
  """A scaled spectrum with decorrelated colours."""
  decay: float = setting(1.5, _DECAY, "coefficients are divided by frequency^decay")
  init_std: float = setting(0.01, _STD, "standard deviation of the initial coefficients")


@dataclasses.dataclass(frozen=True)
class CppnSettings:
  """A network that computes each pixel's colour from its coordinates."""
  hidden: int = setting(24, whole(1, 1024), "width of the hidden layers")
  depth: int = setting(6, whole(1, 32), "number of hidden layers")


@dataclasses.dataclass(frozen=True)
class SirenSettings:
  """A network of sines of the pixel coordinates (SIREN, arXiv:2006.09661)."""
  hidden: int = setting(64, whole(1, 1024), "width of the hidden layers")
  depth: int = setting(3, whole(1, 32), "number of hidden layers")
  w0: float = setting(30.0, above(0.0), "frequency scale")


@dataclasses.dataclass(frozen=True)
class SharedSettings:
  """Several frames, for several prompts, with their low frequencies in common."""
  frames: int = setting(3, whole(1, 64), "number of frames")
  cutoff: float = setting(4.0, number(0.0, 1024.0), "highest frequency of the common part, cycles an image")
  own: float = setting(0.5, above(0.0, 100.0), "speed of a frame's own part over that of the common part")
  decay: float = setting(1.5, _DECAY, "coefficients are divided by frequency^decay")
  init_std: float = setting(0.01, _STD, "standard deviation of the initial coefficients")


@dataclasses.dataclass(frozen=True)
class SymmetricSettings:
  """A mirrored image of another generator, with the settings of that generator's group."""
  of: str = setting("fourier", one_of(PLAIN),
                    "the generator; cppn and siren need their own learning rates, too")


@dataclasses.dataclass(frozen=True)
class TranslucentSettings:
  """An image with opacity over random backgrounds."""
  noise: float = setting(0.0, number(0.0, 1.0), "share of backgrounds that are smooth noise instead of one grey")
  price: float = setting(100.0, number(0.0, 1e6), "weight of the mean opacity as a loss")
  decay: float = setting(1.5, _DECAY, "coefficients are divided by frequency^decay")
  init_std: float = setting(0.01, _STD, "standard deviation of the initial coefficients")


@dataclasses.dataclass(frozen=True)
class TextureSettings:
  """The texture of a fixed solid, seen by random cameras."""
  shape: str = setting("cube", one_of(SOLIDS), "the solid")
  extent: float = setting(0.4, above(0.0, 1.0), "radius of the sphere or half-width of the cube, world units")
  resolution: int = setting(32, whole(4, 2048), "height of the texture, or of each face, in texels")
  decay: float = setting(1.0, _DECAY, "coefficients are divided by frequency^decay")
  init_std: float = setting(0.01, _STD, "standard deviation of the initial coefficients")


@dataclasses.dataclass(frozen=True)
class GaussiansSettings:
  """An image of 2D Gaussians, composited front to back."""
  count: int = setting(128, whole(1, 100_000), "number of Gaussians")
  radius: float = setting(0.15, above(0.0), "initial standard deviation; the image is 2 wide")


_VIEWPOINT = Legal(lambda v: not v or (len(v) == 2 and all(map(finite, v)) and abs(v[1]) <= 90.0),
                   "(azimuth, elevation) in degrees, elevation from -90 to 90, or () for no viewpoint", tuple)


@dataclasses.dataclass(frozen=True)
class ImageGeneratorSettings:
  """The parameterization of the images that are optimized, and how many there are."""
  name: str = setting("pixels", _generator_name(IMAGE_GENERATORS), f"the parameterization, or {_USERS_OWN}")
  size: int = setting(64, even(8, 1024), "side of the images that the prior sees, pixels")
  particles: int = setting(1, whole(1, 4096),
                           "independent images; training.views is a multiple of particles times frames")
  viewpoint: tuple = setting((30.0, 25.0), _VIEWPOINT, "(azimuth, elevation) in degrees for priors that know cameras")
  pixels: PixelsSettings = group(PixelsSettings)
  fourier: FourierSettings = group(FourierSettings)
  cppn: CppnSettings = group(CppnSettings)
  siren: SirenSettings = group(SirenSettings)
  shared: SharedSettings = group(SharedSettings)
  symmetric: SymmetricSettings = group(SymmetricSettings)
  translucent: TranslucentSettings = group(TranslucentSettings)
  texture: TextureSettings = group(TextureSettings)
  gaussians: GaussiansSettings = group(GaussiansSettings)

  @property
  def frames(self) -> int:
    """The frames of a particle, from the settings.

    A generator of the user's own may have others.
    """
    return self.shared.frames if self.name == "shared" else 1
