"""Reading from the image and writing to the canvas, with selective attention (eqs. 27-29) and without (eqs. 17-18)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from draw.filterbank import filterbank, initial_raw, window
from draw.types import Window


def extract(images: Float[Tensor, "b k h w"], window: Window, n: int) -> Float[Tensor, "b k {n} {n}"]:
    r"""The patch that a window sees of each image, :math:`\gamma F_Y x F_X^T` (eq. 27)."""
    F_X, F_Y = filterbank(window, n, *images.shape[-2:])
    return window.gamma[:, None, None, None] * (F_Y[:, None] @ images @ F_X[:, None].mT)  # 27


def deposit(
    patch: Float[Tensor, "b c n n"], window: Window, height: int, width: int
) -> Float[Tensor, "b c {height} {width}"]:
    r"""The stroke that a patch leaves through a window, :math:`\frac{1}{\gamma} F_Y^T w F_X` (eq. 29).

    Intensities aside it is the adjoint of `extract`.
    """
    F_X, F_Y = filterbank(window, patch.shape[-1], height, width)
    return window.gamma.reciprocal()[:, None, None, None] * (F_Y[:, None].mT @ patch @ F_X[:, None])  # 29


class WindowHead(nn.Linear):
    """Eq. 21: from the decoder's output to a window, which at first lies over the whole image.

    `sigma` and `gamma` are those of `filterbank.initial_raw`.
    """

    def __init__(self, dec_size: int, n: int, height: int, width: int, *, sigma: float, gamma: int) -> None:
        super().__init__(dec_size, 5)
        self.n, self.height, self.width = n, height, width
        with torch.no_grad():
            self.bias.copy_(torch.tensor(initial_raw(n, height, width, sigma=sigma, gamma=gamma)))

    def forward(self, h_dec: Float[Tensor, "b d"]) -> Window:  # type: ignore[override]  # a Window, not a Tensor
        """The window of each image."""
        return window(super().forward(h_dec), self.n, self.height, self.width)


class FullRead(nn.Module):
    """Reading without attention (eq. 17): all of the image and of the error image."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.features = 2 * channels * height * width

    def forward(
        self, x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"], h_dec: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b r"], None]:
        """Both images side by side, and no window."""
        return torch.cat([x, x_hat], dim=1).flatten(1), None


class AttentiveRead(nn.Module):
    """Reading through an N x N window placed by the decoder's output of the glimpse before (eq. 27)."""

    def __init__(self, n: int, dec_size: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.n = n
        self.features = 2 * channels * n * n
        # A mean over stride^2 pixels varies about 1/stride as much as one of them: gamma makes up for that.
        self.to_window = WindowHead(dec_size, n, height, width, sigma=0.25, gamma=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], x_hat: Float[Tensor, "b c h w"], h_dec: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b r"], Window]:
        """The patches of both images through one window shared by all channels, and that window."""
        window = self.to_window(h_dec)
        return extract(torch.cat([x, x_hat], dim=1), window, self.n).flatten(1), window


class FullWrite(nn.Module):
    """Writing without attention (eq. 18): a stroke over the whole canvas."""

    def __init__(self, dec_size: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.image_shape = channels, height, width
        self.to_stroke = nn.Linear(dec_size, channels * height * width)

    def forward(self, h_dec: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b c h w"], None]:
        """The stroke in logits, and no window."""
        return self.to_stroke(h_dec).view(-1, *self.image_shape), None


class AttentiveWrite(nn.Module):
    """Writing an N x N patch through a window of its own, both from the decoder's output (eqs. 28-29)."""

    def __init__(self, n: int, dec_size: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width
        self.patch_shape = channels, n, n
        # Each filter spreads its value over stride^2 pixels; 1/gamma = stride^2 gives the stroke the patch's own size.
        self.to_window = WindowHead(dec_size, n, height, width, sigma=0.5, gamma=-2)
        self.to_patch = nn.Linear(dec_size, channels * n * n)

    def forward(self, h_dec: Float[Tensor, "b d"]) -> tuple[Float[Tensor, "b c h w"], Window]:
        """The stroke in logits, and the window it went through."""
        window = self.to_window(h_dec)
        patch = self.to_patch(h_dec).view(-1, *self.patch_shape)  # 28
        return deposit(patch, window, self.height, self.width), window
