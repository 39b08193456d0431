// Everything of a glimpse but its matrix products, fused, forward and backward, for float32 on the CPU.
//
// Called from native.py, which does the products and walks the glimpses, and which compiles this file for the sizes of
// one model: CHANNELS, HEIGHT, WIDTH, READ_N and WRITE_N, the last two 0 without attention. Rows are images; a stride is
// the floats from one image's row to the next. Equation numbers are the paper's; the meaning of every value is that of
// filterbank.py, attention.py and model.py, to which the tests hold it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C"
#endif

namespace {

constexpr int c = CHANNELS, h = HEIGHT, w = WIDTH, pixels = c * h * w;

// exp to 2 units in the last place, flushed to 0 below -87; written out because a library call would not vectorise.
inline float exp_(float v) {
  float x = v < -87.0f ? -87.0f : v > 88.0f ? 88.0f : v;
  float n = std::nearbyint(x * 1.44269504f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return v < -87.0f ? 0.0f : p * scale;
}

inline float sigmoid(float v) { return 1.0f / (1.0f + exp_(-v)); }
inline float tanh_(float v) { return 1.0f - 2.0f / (exp_(2.0f * v) + 1.0f); }

struct Window {  // eqs. 21-24
  float g_X, g_Y, delta, sigma2, gamma;
  Window(const float* raw, int n)
      : g_X((w + 1) / 2.0f * (raw[0] + 1) - 1),
        g_Y((h + 1) / 2.0f * (raw[1] + 1) - 1),
        delta((std::max(w, h) - 1.0f) / std::max(n - 1, 1) * std::exp(raw[3])),
        sigma2(std::exp(raw[2])),
        gamma(std::exp(raw[4])) {}
};

inline float nearest_pixel(float mu, int size) {
  float a0 = std::nearbyint(mu);
  return a0 < 0 ? 0.0f : a0 > size - 1 ? size - 1.0f : a0;
}

// Eqs. 19-20, 25-26: F (n, size).
template <int n, int size>
void filters(float g, const Window& window, float* F) {
  for (int i = 0; i < n; i++, F += size) {
    float mu = g + (i - (n - 1) / 2.0f) * window.delta, a0 = nearest_pixel(mu, size), k = 0.5f * (1.0f / window.sigma2);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int a = 0; a < size; a++) {
      F[a] = exp_(-(a - a0) * (a + a0 - 2 * mu) * k);
      sum += F[a];
    }
    for (int a = 0; a < size; a++) F[a] /= sum;
  }
}

// The gradient of `filters` by g, log delta and log sigma^2, given dF.
template <int n, int size>
void filters_backward(float g, const Window& window, const float* F, const float* dF, float& dg, float& dlog_delta,
                      float& dlog_sigma2) {
  for (int i = 0; i < n; i++, F += size, dF += size) {
    float offset = i - (n - 1) / 2.0f, mu = g + offset * window.delta, a0 = nearest_pixel(mu, size);
    float k = 0.5f * (1.0f / window.sigma2), dot = 0, dmu = 0, dk = 0;
#pragma omp simd reduction(+ : dot)
    for (int a = 0; a < size; a++) dot += F[a] * dF[a];
#pragma omp simd reduction(+ : dmu, dk)
    for (int a = 0; a < size; a++) {
      float dE = F[a] * (dF[a] - dot);
      dmu += dE * (a - a0);
      dk += dE * (a - a0) * (a + a0 - 2 * mu);
    }
    dmu *= 2 * k;
    dg += dmu;
    dlog_delta += dmu * offset * window.delta;
    dlog_sigma2 += dk * k;
  }
}

// out (p, r) += A (p, q) B (q, r)
template <int p, int q, int r>
inline void product(const float* A, const float* B, float* out) {
  for (int i = 0; i < p; i++)
    for (int j = 0; j < q; j++) {
      float value = A[i * q + j];
#pragma omp simd
      for (int k = 0; k < r; k++) out[i * r + k] += value * B[j * r + k];
    }
}

// out (p, r) += scale A (p, q) B (r, q)^T
template <int p, int q, int r>
inline void product_t(const float* A, const float* B, float scale, float* out) {
  for (int i = 0; i < p; i++)
    for (int k = 0; k < r; k++) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int j = 0; j < q; j++) sum += A[i * q + j] * B[k * q + j];
      out[i * r + k] += scale * sum;
    }
}

// out (q, r) += A (p, q)^T B (p, r)
template <int p, int q, int r>
inline void t_product(const float* A, const float* B, float scale, float* out) {
  for (int j = 0; j < q; j++)
    for (int i = 0; i < p; i++) {
      float value = scale * A[i * q + j];
#pragma omp simd
      for (int k = 0; k < r; k++) out[j * r + k] += value * B[i * r + k];
    }
}

template <int n>
struct Attention {  // a window and its filters
  Window window;
  float F_X[n * w], F_Y[n * h];
  explicit Attention(const float* raw) : window(raw, n) {
    filters<n, w>(window.g_X, window, F_X);
    filters<n, h>(window.g_Y, window, F_Y);
  }
  // draw (5) from dF_X, dF_Y and the gradient of log gamma.
  void backward(const float* dF_X, const float* dF_Y, float dlog_gamma, float* draw) const {
    float dg_X = 0, dg_Y = 0, dlog_delta = 0, dlog_sigma2 = 0;
    filters_backward<n, w>(window.g_X, window, F_X, dF_X, dg_X, dlog_delta, dlog_sigma2);
    filters_backward<n, h>(window.g_Y, window, F_Y, dF_Y, dg_Y, dlog_delta, dlog_sigma2);
    draw[0] = (w + 1) / 2.0f * dg_X;
    draw[1] = (h + 1) / 2.0f * dg_Y;
    draw[2] = dlog_sigma2;
    draw[3] = dlog_delta;
    draw[4] = dlog_gamma;
  }
};

inline void error_image(const float* x, const float* canvas, float* x_hat) {  // eq. 3
#pragma omp simd
  for (int i = 0; i < pixels; i++) x_hat[i] = x[i] - sigmoid(canvas[i]);
}

// Eq. 27 for all channels of the image and of the error image.
template <int n>
void read_patches(const float* x, const float* x_hat, const float* raw, float* r) {
  Attention<n> at(raw);
  for (int k = 0; k < 2 * c; k++, r += n * n) {
    const float* channel = k < c ? x + k * h * w : x_hat + (k - c) * h * w;
    float rows[n * w] = {};
    product<n, h, w>(at.F_Y, channel, rows);
    std::fill(r, r + n * n, 0.0f);
    product_t<n, w, n>(rows, at.F_X, at.window.gamma, r);  // 27
  }
}

// The gradient of `read_patches` by the window's raw values and by the error image.
template <int n>
void read_patches_backward(const float* x, const float* x_hat, const float* raw, const float* r, const float* dr,
                           float* draw, float* dx_hat) {
  Attention<n> at(raw);
  float dF_X[n * w] = {}, dF_Y[n * h] = {}, dlog_gamma = 0;
  std::fill(dx_hat, dx_hat + pixels, 0.0f);
  for (int k = 0; k < 2 * c; k++, r += n * n, dr += n * n) {
    const float* channel = k < c ? x + k * h * w : x_hat + (k - c) * h * w;
    float G[n * n], rows[n * w] = {}, drows[n * w] = {};
    for (int i = 0; i < n * n; i++) {
      G[i] = at.window.gamma * dr[i];
      dlog_gamma += dr[i] * r[i];
    }
    product<n, h, w>(at.F_Y, channel, rows);
    t_product<n, n, w>(G, rows, 1.0f, dF_X);
    product<n, n, w>(G, at.F_X, drows);
    product_t<n, w, h>(drows, channel, 1.0f, dF_Y);
    if (k >= c) t_product<n, h, w>(at.F_Y, drows, 1.0f, dx_hat + (k - c) * h * w);
  }
  at.backward(dF_X, dF_Y, dlog_gamma, draw);
}

// Eq. 29, added to a canvas, from a head's output: raw window, patch.
template <int n>
void write_patch(const float* head, float* canvas) {
  Attention<n> at(head);
  for (int k = 0; k < c; k++) {
    float rows[n * w] = {};
    product<n, n, w>(head + 5 + k * n * n, at.F_X, rows);
    t_product<n, h, w>(at.F_Y, rows, 1.0f / at.window.gamma, canvas + k * h * w);  // 29
  }
}

// The gradient of `write_patch` by the head's output.
template <int n>
void write_patch_backward(const float* head, const float* dcanvas, float* dhead) {
  Attention<n> at(head);
  float dF_X[n * w] = {}, dF_Y[n * h] = {}, scale = 1.0f / at.window.gamma, dlog_gamma = 0;
  std::fill(dhead + 5, dhead + 5 + c * n * n, 0.0f);
  for (int k = 0; k < c; k++) {
    const float *patch = head + 5 + k * n * n, *dstroke = dcanvas + k * h * w;
    float rows[n * w] = {}, seen[n * w] = {}, *dpatch = dhead + 5 + k * n * n;
    product<n, n, w>(patch, at.F_X, rows);
    product<n, h, w>(at.F_Y, dstroke, seen);
    product_t<n, w, n>(seen, at.F_X, scale, dpatch);
    t_product<n, n, w>(patch, seen, scale, dF_X);
    product_t<n, w, h>(rows, dstroke, scale, dF_Y);
    for (int i = 0; i < n * n; i++) dlog_gamma -= dpatch[i] * patch[i];
  }
  at.backward(dF_X, dF_Y, dlog_gamma, dhead);
}

inline int64_t row(int m, int stride) { return static_cast<int64_t>(m) * stride; }

}  // namespace

// Eqs. 3-4: r (b, 2 c n n), or without attention the error image (b, c h w).
EXPORT void read_forward(int b, const float* x, const float* canvas, const float* raw, int raw_stride, float* r,
                         int r_stride) {
#pragma omp parallel
  {
    std::vector<float> x_hat(pixels);
#pragma omp for
    for (int m = 0; m < b; m++) {
      const float *image = x + row(m, pixels), *drawn = canvas + row(m, pixels);
      float* out = r + row(m, r_stride);
      if constexpr (READ_N > 0) {
        error_image(image, drawn, x_hat.data());
        read_patches<READ_N>(image, x_hat.data(), raw + row(m, raw_stride), out);
      } else {
        error_image(image, drawn, out);
      }
    }
  }
}

// The gradient of `read_forward`: writes draw, and adds to dcanvas.
EXPORT void read_backward(int b, const float* x, const float* canvas, const float* raw, int raw_stride, const float* r,
                          int r_stride, const float* dr, int dr_stride, float* draw, int draw_stride, float* dcanvas) {
#pragma omp parallel
  {
    std::vector<float> x_hat(pixels), dx_hat(pixels);
#pragma omp for
    for (int m = 0; m < b; m++) {
      const float *image = x + row(m, pixels), *drawn = canvas + row(m, pixels);
      error_image(image, drawn, x_hat.data());
      const float* d = dr + row(m, dr_stride);
      if constexpr (READ_N > 0) {
        read_patches_backward<READ_N>(image, x_hat.data(), raw + row(m, raw_stride), r + row(m, r_stride),
                                      dr + row(m, dr_stride), draw + row(m, draw_stride), dx_hat.data());
        d = dx_hat.data();
      }
      float* out = dcanvas + row(m, pixels);
#pragma omp simd
      for (int i = 0; i < pixels; i++) {
        float p = image[i] - x_hat[i];  // sigmoid(canvas)
        out[i] -= d[i] * p * (1 - p);
      }
    }
  }
}

// Eq. 8: the next canvas from a head's output, [raw window, patch] or without attention the stroke (eq. 18).
EXPORT void write_forward(int b, const float* head, int head_stride, const float* canvas, float* next) {
#pragma omp parallel for
  for (int m = 0; m < b; m++) {
    const float *out = head + row(m, head_stride), *before = canvas + row(m, pixels);
    float* after = next + row(m, pixels);
    if constexpr (WRITE_N > 0) {
      std::copy(before, before + pixels, after);
      write_patch<WRITE_N>(out, after);
    } else {
      for (int i = 0; i < pixels; i++) after[i] = before[i] + out[i];
    }
  }
}

// The gradient of `write_forward` by the head's output; the canvas's own passes through.
EXPORT void write_backward(int b, const float* head, int head_stride, const float* dcanvas, float* dhead,
                           int dhead_stride) {
#pragma omp parallel for
  for (int m = 0; m < b; m++) {
    const float* d = dcanvas + row(m, pixels);
    float* out = dhead + row(m, dhead_stride);
    if constexpr (WRITE_N > 0) {
      write_patch_backward<WRITE_N>(head + row(m, head_stride), d, out);
    } else {
      std::copy(d, d + pixels, out);
    }
  }
}

// The LSTM's step from the gates' inputs less their bias, which become the gates; the output goes to one or two places.
// A bias of stride 0 is that of all images.
EXPORT void lstm_forward(int b, int k, const float* bias, int bias_stride, float* gates, const float* s, float* s_next,
                         float* h, int h_stride, float* h2, int h2_stride) {
#pragma omp parallel for
  for (int m = 0; m < b; m++) {
    float* i = gates + row(m, 4 * k);
    float *f = i + k, *g = f + k, *o = g + k;
    const float *before = s + row(m, k), *add = bias + row(m, bias_stride);
    float *after = s_next + row(m, k), *out = h + row(m, h_stride);
#pragma omp simd
    for (int u = 0; u < k; u++) {
      i[u] = sigmoid(i[u] + add[u]);
      f[u] = sigmoid(f[u] + add[k + u]);
      g[u] = tanh_(g[u] + add[2 * k + u]);
      o[u] = sigmoid(o[u] + add[3 * k + u]);
      after[u] = f[u] * before[u] + i[u] * g[u];
      out[u] = o[u] * tanh_(after[u]);
    }
    if (h2) std::memcpy(h2 + row(m, h2_stride), out, k * sizeof(float));
  }
}

// The gradient of `lstm_forward`: the gates become the gradients of their inputs, ds that of the memory before. The
// output's gradient is the sum of two or three parts.
EXPORT void lstm_backward(int b, int k, float* gates, const float* s, const float* s_next, const float* dh, int dh_stride,
                          const float* dh2, int dh2_stride, const float* dh3, int dh3_stride, float* ds) {
#pragma omp parallel for
  for (int m = 0; m < b; m++) {
    float* i = gates + row(m, 4 * k);
    float *f = i + k, *g = f + k, *o = g + k;
    const float *before = s + row(m, k), *after = s_next + row(m, k);
    const float *d1 = dh + row(m, dh_stride), *d2 = dh2 + row(m, dh2_stride);
    const float* d3 = dh3 ? dh3 + row(m, dh3_stride) : d2;
    float *d = ds + row(m, k), third = dh3 ? 1.0f : 0.0f;
#pragma omp simd
    for (int u = 0; u < k; u++) {
      float dout = d1[u] + d2[u] + third * d3[u], tanh_s = tanh_(after[u]);
      float dafter = d[u] + dout * o[u] * (1 - tanh_s * tanh_s);
      float di = dafter * g[u] * i[u] * (1 - i[u]), df = dafter * before[u] * f[u] * (1 - f[u]);
      float dg = dafter * i[u] * (1 - g[u] * g[u]), dgate = dout * tanh_s * o[u] * (1 - o[u]);
      d[u] = dafter * f[u];
      i[u] = di;
      f[u] = df;
      g[u] = dg;
      o[u] = dgate;
    }
  }
}

// Eq. 6 from q (b, 2 z) = [mu, log sigma].
EXPORT void sample_forward(int b, int size, const float* q, const float* eps, float* z, int z_stride) {
#pragma omp parallel for
  for (int m = 0; m < b; m++) {
    const float *mu = q + row(m, 2 * size), *log_sigma = mu + size, *e = eps + row(m, size);
    float* out = z + row(m, z_stride);
#pragma omp simd
    for (int u = 0; u < size; u++) out[u] = mu[u] + exp_(log_sigma[u]) * e[u];
  }
}

// The gradient of `sample_forward`, added to dq.
EXPORT void sample_backward(int b, int size, const float* q, const float* eps, const float* dz, int dz_stride,
                            float* dq) {
#pragma omp parallel for
  for (int m = 0; m < b; m++) {
    const float *log_sigma = q + static_cast<int64_t>(m) * 2 * size + size, *e = eps + row(m, size);
    const float* d = dz + row(m, dz_stride);
    float *dmu = dq + row(m, 2 * size), *dlog_sigma = dmu + size;
#pragma omp simd
    for (int u = 0; u < size; u++) {
      dmu[u] += d[u];
      dlog_sigma[u] += d[u] * e[u] * exp_(log_sigma[u]);
    }
  }
}
