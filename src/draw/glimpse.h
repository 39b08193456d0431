// Everything of a glimpse but its matrix products, fused, forward and backward, for some images, in float32.
//
// Part of glimpses.cpp. Compiled for the sizes of one model: CHANNELS, HEIGHT, WIDTH, READ_N and WRITE_N, the last two 0
// without attention; and for FILL. Rows are images; a stride is the floats from one image's row to the next. Equation
// numbers are the paper's; the meaning of every value is that of filterbank.py, attention.py and model.py, to which the
// tests hold it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// A line of pixels is filled up to a multiple of FILL floats, the longest vector of any processor.
constexpr int whole(int size) { return (size + FILL - 1) / FILL * FILL; }
constexpr int c = CHANNELS, h = HEIGHT, w = WIDTH, line = whole(w), column = whole(h), pixels = c * h * line;

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;  // in as many registers as it takes
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
inline const Lanes* lanes(const float* at) { return reinterpret_cast<const Lanes*>(at); }
inline Lanes* lanes(float* at) { return reinterpret_cast<Lanes*>(at); }

inline float sum(Lanes v) {
  typedef float Four __attribute__((vector_size(16)));
  Four parts[LANES / 4];
  std::memcpy(parts, &v, sizeof v);
  for (int count = LANES / 8; count; count /= 2)
    for (int i = 0; i < count; i++) parts[i] += parts[i + count];
  return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

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
  uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n)) + 127) << 23;
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

// Below this, relative to a filter's largest value, its tails are zero: products of them would be denormal, and slow.
constexpr float NEGLIGIBLE = 1e-12f;

// Eqs. 19-20, 25-26: F (n, size), rows filled up with zeros.
template <int n, int size>
void filters(float g, const Window& window, float* F) {
  for (int i = 0; i < n; i++, F += whole(size)) {
    float mu = g + (i - (n - 1) / 2.0f) * window.delta, a0 = nearest_pixel(mu, size), k = 0.5f * (1.0f / window.sigma2);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int a = 0; a < whole(size); a++) {
      float f = exp_(-(a - a0) * (a + a0 - 2 * mu) * k);
      F[a] = a < size && f > NEGLIGIBLE ? f : 0.0f;
      sum += F[a];
    }
    for (int a = 0; a < whole(size); a++) F[a] /= sum;
  }
}

// The gradient of `filters` by g, log delta and log sigma^2, given dF.
template <int n, int size>
void filters_backward(float g, const Window& window, const float* F, const float* dF, float& dg, float& dlog_delta,
                      float& dlog_sigma2) {
  for (int i = 0; i < n; i++, F += whole(size), dF += whole(size)) {
    float offset = i - (n - 1) / 2.0f, mu = g + offset * window.delta, a0 = nearest_pixel(mu, size);
    float k = 0.5f * (1.0f / window.sigma2), dot = 0, dmu = 0, dk = 0;
#pragma omp simd reduction(+ : dot)
    for (int a = 0; a < whole(size); a++) dot += F[a] * dF[a];
#pragma omp simd reduction(+ : dmu, dk)
    for (int a = 0; a < whole(size); a++) {
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

template <int n>
struct Attention {  // a window and its filters
  Window window;
  float F_X[n * line], F_Y[n * column];
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

// The products of filters with a channel or a patch, a vector of pixels at a time. A patch is (n, n), rows are (n, line).

// rows = F_Y channel
template <int n>
inline void rows_of_channel(const float* F_Y, const float* channel, float* rows) {
  for (int k = 0; k < line; k += LANES) {
    Lanes sums[n] = {};
    for (int y = 0; y < h; y++)
      for (int i = 0; i < n; i++) sums[i] += F_Y[i * column + y] * *lanes(channel + y * line + k);
    for (int i = 0; i < n; i++) *lanes(rows + i * line + k) = sums[i];
  }
}

// rows = patch F_X
template <int n>
inline void rows_of_patch(const float* patch, const float* F_X, float* rows) {
  for (int k = 0; k < line; k += LANES)
    for (int i = 0; i < n; i++) {
      Lanes sum = {};
      for (int j = 0; j < n; j++) sum += patch[i * n + j] * *lanes(F_X + j * line + k);
      *lanes(rows + i * line + k) = sum;
    }
}

// patch = scale rows F_X^T
template <int n>
inline void patch_of_rows(const float* rows, const float* F_X, float scale, float* patch) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      Lanes sums = {};
      for (int k = 0; k < line; k += LANES) sums += *lanes(rows + i * line + k) * *lanes(F_X + j * line + k);
      patch[i * n + j] = scale * sum(sums);
    }
}

// channel += scale F_Y^T rows
template <int n>
inline void add_channel_of_rows(const float* F_Y, const float* rows, float scale, float* channel) {
  for (int k = 0; k < line; k += LANES) {
    Lanes scaled[n];
    for (int i = 0; i < n; i++) scaled[i] = scale * *lanes(rows + i * line + k);
    for (int y = 0; y < h; y++) {
      Lanes sum = {};
      for (int i = 0; i < n; i++) sum += F_Y[i * column + y] * scaled[i];
      *lanes(channel + y * line + k) += sum;
    }
  }
}

// dF_X += scale patch^T rows
template <int n>
inline void add_filters_x(const float* patch, const float* rows, float scale, float* dF_X) {
  for (int k = 0; k < line; k += LANES)
    for (int j = 0; j < n; j++) {
      Lanes sum = {};
      for (int i = 0; i < n; i++) sum += patch[i * n + j] * *lanes(rows + i * line + k);
      *lanes(dF_X + j * line + k) += scale * sum;
    }
}

// dF_Y += scale rows channel^T
template <int n>
inline void add_filters_y(const float* rows, const float* channel, float scale, float* dF_Y) {
  for (int y = 0; y < h; y++)
    for (int i = 0; i < n; i++) {
      Lanes sums = {};
      for (int k = 0; k < line; k += LANES) sums += *lanes(rows + i * line + k) * *lanes(channel + y * line + k);
      dF_Y[i * column + y] += scale * sum(sums);
    }
}

inline void error_image(const float* x, const float* canvas, float* x_hat) {  // eq. 3
#pragma omp simd
  for (int i = 0; i < pixels; i++) x_hat[i] = x[i] - sigmoid(canvas[i]);
}

// Eq. 27 for all channels of the image and of the error image.
template <int n>
void read_patches(const float* x, const float* x_hat, const float* raw, float* r) {
  Attention<n> at(raw);
  for (int k = 0; k < 2 * c; k++, r += n * n) {
    const float* channel = k < c ? x + k * h * line : x_hat + (k - c) * h * line;
    float rows[n * line];
    rows_of_channel<n>(at.F_Y, channel, rows);
    patch_of_rows<n>(rows, at.F_X, at.window.gamma, r);  // 27
  }
}

// The gradient of `read_patches` by the window's raw values, and by the error image, which is added to dx_hat.
template <int n>
void read_patches_backward(const float* x, const float* x_hat, const float* raw, const float* r, const float* dr,
                           float* draw, float* dx_hat) {
  Attention<n> at(raw);
  float dF_X[n * line] = {}, dF_Y[n * column] = {}, dlog_gamma = 0, gamma = at.window.gamma;
  for (int k = 0; k < 2 * c; k++, r += n * n, dr += n * n) {
    const float* channel = k < c ? x + k * h * line : x_hat + (k - c) * h * line;
    float rows[n * line], drows[n * line];
    for (int i = 0; i < n * n; i++) dlog_gamma += dr[i] * r[i];
    rows_of_channel<n>(at.F_Y, channel, rows);
    rows_of_patch<n>(dr, at.F_X, drows);
    add_filters_x<n>(dr, rows, gamma, dF_X);
    add_filters_y<n>(drows, channel, gamma, dF_Y);
    if (k >= c) add_channel_of_rows<n>(at.F_Y, drows, gamma, dx_hat + (k - c) * h * line);
  }
  at.backward(dF_X, dF_Y, dlog_gamma, draw);
}

// Eq. 29, added to a canvas, from a head's output: raw window, patch.
template <int n>
void write_patch(const float* head, float* canvas) {
  Attention<n> at(head);
  for (int k = 0; k < c; k++) {
    float rows[n * line];
    rows_of_patch<n>(head + 5 + k * n * n, at.F_X, rows);
    add_channel_of_rows<n>(at.F_Y, rows, 1.0f / at.window.gamma, canvas + k * h * line);  // 29
  }
}

// The gradient of `write_patch` by the head's output.
template <int n>
void write_patch_backward(const float* head, const float* dcanvas, float* dhead) {
  Attention<n> at(head);
  float dF_X[n * line] = {}, dF_Y[n * column] = {}, scale = 1.0f / at.window.gamma, dlog_gamma = 0;
  for (int k = 0; k < c; k++) {
    const float *patch = head + 5 + k * n * n, *dstroke = dcanvas + k * h * line;
    float rows[n * line], seen[n * line], *dpatch = dhead + 5 + k * n * n;
    rows_of_patch<n>(patch, at.F_X, rows);
    rows_of_channel<n>(at.F_Y, dstroke, seen);
    patch_of_rows<n>(seen, at.F_X, scale, dpatch);
    add_filters_x<n>(patch, seen, scale, dF_X);
    add_filters_y<n>(rows, dstroke, scale, dF_Y);
    for (int i = 0; i < n * n; i++) dlog_gamma -= dpatch[i] * patch[i];
  }
  at.backward(dF_X, dF_Y, dlog_gamma, dhead);
}

// A gate as it is kept for the backward pass: as it is, or in bfloat16, and then as its distance from the nearer of its
// two ends, with a minus sign, be it -0, from the upper one: a gate that is almost shut or open has a slope all the same.
using bf16 = uint16_t;

inline bf16 rounded(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return static_cast<bf16>(v != v ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float widened(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

struct Gate {
  float value, slope;
};
inline void keep_sigmoid(float v, float& kept) { kept = v; }
inline void keep_sigmoid(float v, bf16& kept) { kept = rounded(v < 0.5f ? v : -(1 - v)); }
inline void keep_tanh(float v, float& kept) { kept = v; }
inline void keep_tanh(float v, bf16& kept) { keep_sigmoid(0.5f * (v + 1), kept); }
inline Gate kept_sigmoid(float v) { return {v, v * (1 - v)}; }
inline Gate kept_sigmoid(bf16 kept) {
  const float v = widened(kept), distance = std::fabs(v);
  return {kept & 0x8000 ? 1 + v : v, distance * (1 - distance)};
}
inline Gate kept_tanh(float v) { return {v, 1 - v * v}; }
inline Gate kept_tanh(bf16 kept) {
  const Gate of = kept_sigmoid(kept);
  return {2 * of.value - 1, 4 * of.slope};
}

// One image's step of an LSTM of k units: from the gates' inputs less their bias to the gates [i, f, g, o], the memory
// after it and the output.
template <class Kept>
inline void lstm_of(int k, const float* in, const float* bias, const float* before, Kept* gates, float* after, float* out) {
#pragma omp simd
  for (int u = 0; u < k; u++) {
    float i = sigmoid(in[u] + bias[u]), f = sigmoid(in[k + u] + bias[k + u]);
    float g = tanh_(in[2 * k + u] + bias[2 * k + u]), o = sigmoid(in[3 * k + u] + bias[3 * k + u]);
    after[u] = f * before[u] + i * g;
    out[u] = o * tanh_(after[u]);
    keep_sigmoid(i, gates[u]), keep_sigmoid(f, gates[k + u]);
    keep_tanh(g, gates[2 * k + u]), keep_sigmoid(o, gates[3 * k + u]);
  }
}

// Its gradient: din is that of the gates' inputs, ds becomes that of the memory before. The output's is the sum of two
// or three parts.
template <class Kept>
inline void lstm_backward_of(int k, const Kept* gates, const float* before, const float* after, const float* dh,
                             const float* dh2, const float* dh3, float* ds, float* din) {
  const float third = dh3 ? 1.0f : 0.0f, *d3 = dh3 ? dh3 : dh2;
#pragma omp simd
  for (int u = 0; u < k; u++) {
    const Gate i = kept_sigmoid(gates[u]), f = kept_sigmoid(gates[k + u]);
    const Gate g = kept_tanh(gates[2 * k + u]), o = kept_sigmoid(gates[3 * k + u]);
    float dout = dh[u] + dh2[u] + third * d3[u], tanh_s = tanh_(after[u]);
    float dafter = ds[u] + dout * o.value * (1 - tanh_s * tanh_s);
    ds[u] = dafter * f.value;
    din[u] = dafter * g.value * i.slope;
    din[k + u] = dafter * before[u] * f.slope;
    din[2 * k + u] = dafter * i.value * g.slope;
    din[3 * k + u] = dout * tanh_s * o.slope;
  }
}

// Eqs. 3-4: r (b, 2 c n n), or without attention the error image (b, c h w), its lines not filled up.
inline void read_forward(int b, const float* x, const float* canvas, const float* raw, int raw_stride, float* r,
                         int r_stride) {
  std::vector<float> x_hat(pixels);
  for (int m = 0; m < b; m++, x += pixels, canvas += pixels, raw += raw_stride, r += r_stride) {
    error_image(x, canvas, x_hat.data());
    if constexpr (READ_N > 0) {
      read_patches<READ_N>(x, x_hat.data(), raw, r);
    } else {
      for (int y = 0; y < c * h; y++) std::copy_n(x_hat.data() + y * line, w, r + y * w);
    }
  }
}

// The gradient of `read_forward`: writes draw, and adds to dcanvas.
inline void read_backward(int b, const float* x, const float* canvas, const float* raw, int raw_stride, const float* r,
                          int r_stride, const float* dr, int dr_stride, float* draw, int draw_stride, float* dcanvas) {
  std::vector<float> x_hat(pixels), dx_hat(pixels);
  for (int m = 0; m < b; m++, x += pixels, canvas += pixels, dcanvas += pixels, raw += raw_stride, draw += draw_stride,
           r += r_stride, dr += dr_stride) {
    error_image(x, canvas, x_hat.data());
    std::fill(dx_hat.begin(), dx_hat.end(), 0.0f);
    if constexpr (READ_N > 0) {
      read_patches_backward<READ_N>(x, x_hat.data(), raw, r, dr, draw, dx_hat.data());
    } else {
      for (int y = 0; y < c * h; y++) std::copy_n(dr + y * w, w, dx_hat.data() + y * line);
    }
#pragma omp simd
    for (int i = 0; i < pixels; i++) {
      float p = x[i] - x_hat[i];  // sigmoid(canvas)
      dcanvas[i] -= dx_hat[i] * p * (1 - p);
    }
  }
}

// Eq. 8: the next canvas from a head's output, [raw window, patch] or without attention the stroke (eq. 18).
inline void write_forward(int b, const float* head, int head_stride, const float* canvas, float* next) {
  for (int m = 0; m < b; m++, head += head_stride, canvas += pixels, next += pixels) {
    std::copy_n(canvas, pixels, next);
    if constexpr (WRITE_N > 0) {
      write_patch<WRITE_N>(head, next);
    } else {
      for (int y = 0; y < c * h; y++)
        for (int x = 0; x < w; x++) next[y * line + x] += head[y * w + x];
    }
  }
}

// The gradient of `write_forward` by the head's output; the canvas's own passes through.
inline void write_backward(int b, const float* head, int head_stride, const float* dcanvas, float* dhead,
                           int dhead_stride) {
  for (int m = 0; m < b; m++, head += head_stride, dcanvas += pixels, dhead += dhead_stride) {
    if constexpr (WRITE_N > 0) {
      write_patch_backward<WRITE_N>(head, dcanvas, dhead);
    } else {
      for (int y = 0; y < c * h; y++) std::copy_n(dcanvas + y * line, w, dhead + y * w);
    }
  }
}

// Eq. 6 from q (b, 2 z) = [mu, log sigma].
inline void sample_forward(int b, int size, const float* q, const float* eps, float* z) {
  for (int m = 0; m < b; m++, q += 2 * size, eps += size, z += size) {
#pragma omp simd
    for (int u = 0; u < size; u++) z[u] = q[u] + exp_(q[size + u]) * eps[u];
  }
}

// The gradient of `sample_forward`, added to dq.
inline void sample_backward(int b, int size, const float* q, const float* eps, const float* dz, int dz_stride,
                            float* dq) {
  for (int m = 0; m < b; m++, q += 2 * size, eps += size, dz += dz_stride, dq += 2 * size) {
#pragma omp simd
    for (int u = 0; u < size; u++) {
      dq[u] += dz[u];
      dq[size + u] += dz[u] * eps[u] * exp_(q[size + u]);
    }
  }
}

}  // namespace
