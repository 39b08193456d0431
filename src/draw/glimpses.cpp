// All glimpses of a batch in one call, forward or backward, on the CPU, with the factors of products in float32 or, where
// BFLOAT16 is defined, in bfloat16.
//
// Called from cpu.py, which prepares the weights and makes the weights' gradients from what the backward pass leaves.
// A thread takes its share of the images from the first glimpse to the last and waits for no other. Everything but the
// products is that of glimpse.h. Products of bfloat16 are made by the processor's matrix unit, AMX, or by AVX-512's
// products of vectors of it; where there is neither, and of float32, by vectors of floats.
//
// Compiled for the sizes of one model: those of glimpse.h, ENC_SIZE, DEC_SIZE and Z_SIZE; and for BLOCK. Names and the
// meaning of values are those of cpu.py; equation numbers are the paper's.

#include "glimpse.h"

#include <atomic>
#include <system_error>
#include <thread>

#if defined(__linux__) && !defined(OWN_THREADS)
#define POOL
extern "C" void GOMP_parallel(void (*)(void*), void*, unsigned threads, unsigned flags) __attribute__((weak));
#endif

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C"
#endif

#ifndef BFLOAT16
#elif defined(__AMX_BF16__) && defined(__linux__) && !defined(NO_AMX)
#define AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__AVX512BF16__) && !defined(NO_AVX512BF16)
#define AVX512BF16
#include <immintrin.h>
#endif

namespace {

#ifdef BFLOAT16
using factor = bf16;
inline bf16 as_factor(float v) { return rounded(v); }
#else
using factor = float;
inline float as_factor(float v) { return v; }
#endif
constexpr int PER_WORD = 4 / sizeof(factor);  // factors of a word, four bytes

// Rows and columns of a block of sums, and the steps of a sum that are made at once, are BLOCK.
constexpr int blocks(int size) { return (size + BLOCK - 1) / BLOCK * BLOCK; }

constexpr int E = ENC_SIZE, D = DEC_SIZE, Z = Z_SIZE;
constexpr int R = READ_N ? 2 * c * READ_N * READ_N : c * h * w;  // of what is read, what changes from glimpse to glimpse
constexpr int RAW = READ_N ? 5 : 0;                              // where the write head's outputs begin
constexpr int HEADS = RAW + (WRITE_N ? 5 + c * WRITE_N * WRITE_N : c * h * w);
// What feeds products lies beside one another, each filled up with columns that stay zero: enc_in [r, h_dec, h_enc],
// dec_in [z, h_dec]; and the gradients of q and of the heads. Where they begin, and how many columns that makes:
constexpr int H_DEC = blocks(R), H_ENC = H_DEC + blocks(D), KE = H_ENC + blocks(E);
constexpr int Z_H_DEC = blocks(Z), KD = Z_H_DEC + blocks(D);
constexpr int KQ = blocks(2 * Z), KH = blocks(HEADS);
constexpr int GE = blocks(4 * E), GD = blocks(4 * D);  // of the gates, which feed products on the way back
constexpr int GATES = std::max(GE, GD) + 16;  // no power of two, or rows would lie in the same few lines of a cache

// --- Products ------------------------------------------------------------------------------------------------------
//
// A matrix W (n, k) lies in blocks of 32 columns of W^T, each in parts of 32 steps, each as two tiles
// [step / PER_WORD][column][step % PER_WORD] of 16 columns.
//
// block: sums (32, 32) = a (32, 32 parts) times a block of W^T, of which the first `rows` rows are wanted. Rows of a
// beyond them may be read, whatever they hold and even if another thread is writing them: each makes its own sums alone.
// Where rows begin at multiples of 64 bytes, as they do, a matrix unit is six times as fast.
#ifdef AMX

struct Tiles {  // the tiles of a thread: 16 rows of 64 bytes each
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int tile = 0; tile < 8; tile++) shape.bytes[tile] = 64, shape.rows[tile] = 16;
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
};

inline void block(const factor* a, int stride, const factor* W, int parts, float* sums, int sums_stride, int rows) {
  const int a_bytes = stride * 2, bytes = sums_stride * 4;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int part = 0; part < parts; part++, a += BLOCK, W += BLOCK * BLOCK) {
    _tile_loadd(6, W, 64);
    _tile_loadd(7, W + BLOCK * BLOCK / 2, 64);
    _tile_loadd(4, a, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (rows > 16) {
      _tile_loadd(5, a + 16 * stride, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + 16, bytes);
  if (rows > 16) {
    _tile_stored(2, sums + 16 * sums_stride, bytes);
    _tile_stored(3, sums + 16 * sums_stride + 16, bytes);
  }
}

#else

struct Tiles {};

typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// sums += a b, for the steps of a word: one of a, the same in all lanes, and one of each column.
inline void add_products(Lanes& sums, Words a, const Words& b) {
#if !defined(BFLOAT16)
  sums += (Lanes)a * (Lanes)b;
#elif defined(AVX512BF16)
  sums = (Lanes)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
  sums += (Lanes)(a << 16) * (Lanes)(b << 16) + (Lanes)(a & 0xffff0000u) * (Lanes)(b & 0xffff0000u);
#endif
}

// ROWS rows of a block, of which registers hold two vectors of sums each.
template <int ROWS>
inline void rows_of_block(const factor* a, int stride, const factor* W, int parts, float* sums, int sums_stride) {
  for (int column = 0; column < BLOCK; column += 2 * LANES) {
    Lanes made[ROWS][2] = {};
    for (int k = 0; k < parts * BLOCK; k += PER_WORD) {
      Words b[2];
      for (int j = 0; j < 2; j++) {
        const int at = column + j * LANES, tile = k / BLOCK * 2 + at / 16;
        b[j] = *reinterpret_cast<const Words*>(W + tile * 16 * BLOCK + k % BLOCK * 16 + at % 16 * PER_WORD);
      }
      for (int i = 0; i < ROWS; i++) {
        uint32_t word;
        std::memcpy(&word, a + i * stride + k, sizeof word);
        for (int j = 0; j < 2; j++) add_products(made[i][j], word - Words{}, b[j]);
      }
    }
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < 2; j++) *lanes(sums + i * sums_stride + column + j * LANES) = made[i][j];
  }
}

inline void block(const factor* a, int stride, const factor* W, int parts, float* sums, int sums_stride, int rows) {
  constexpr int MANY = LANES == 16 ? 8 : 6, FEW = LANES == 16 ? 4 : 2;
  int i = 0;
  for (; i + FEW < rows; i += MANY) rows_of_block<MANY>(a + i * stride, stride, W, parts, sums + i * sums_stride, sums_stride);
  for (; i < rows; i += FEW) rows_of_block<FEW>(a + i * stride, stride, W, parts, sums + i * sums_stride, sums_stride);
}

#endif

// out (m, n) = a (m, k) W^T + bias, if there is one. Rows of a beyond m, up to a multiple of 32, must be memory.
void product(int m, int n, int k, const factor* a, int stride, const factor* W, const float* bias, float* out,
             int out_stride) {
  const int parts = blocks(k) / BLOCK;
  for (int column = 0; column < n; column += BLOCK, W += parts * BLOCK * BLOCK)
    for (int first = 0; first < m; first += BLOCK) {
      const int rows = std::min(BLOCK, m - first), columns = std::min(BLOCK, n - column);
      const factor* from = a + static_cast<int64_t>(first) * stride;
      float* to = out + static_cast<int64_t>(first) * out_stride + column;
      if (!bias && rows == BLOCK && columns == BLOCK) {
        block(from, stride, W, parts, to, out_stride, rows);
        continue;
      }
      alignas(64) float sums[BLOCK * BLOCK];
      block(from, stride, W, parts, sums, BLOCK, rows);
      for (int i = 0; i < rows; i++, to += out_stride)
        for (int j = 0; j < columns; j++) to[j] = sums[i * BLOCK + j] + (bias ? bias[column + j] : 0.0f);
    }
}

// What feeds a product: rows of floats, rounded.
template <int n>
void put(int m, const float* from, int stride, factor* to, int to_stride) {
  for (int i = 0; i < m; i++, from += stride, to += to_stride)
    for (int k = 0; k < n; k++) to[k] = as_factor(from[k]);
}

// The same of gradients, which are also added to those of the bias: of each image, or with a stride of 0 of all.
template <int n>
void put(int m, const float* from, int stride, factor* to, int to_stride, float* bias, int bias_stride) {
  for (int i = 0; i < m; i++, from += stride, to += to_stride, bias += bias_stride)
    for (int k = 0; k < n; k++) {
      to[k] = as_factor(from[k]);
      bias[k] += from[k];
    }
}

// The steps of an LSTM of k units from the outputs of its product, and back to the gradients of them, which take the
// place of the gates.
template <int k>
void lstm(int m, const float* in, int in_stride, const float* bias, int bias_stride, const float* s, factor* gates,
          float* s_next, float* h) {
  for (int i = 0; i < m; i++, in += in_stride, bias += bias_stride, s += k, gates += blocks(4 * k), s_next += k, h += k)
    lstm_of(k, in, bias, s, gates, s_next, h);
}

template <int k>
void lstm_back(int m, factor* gates, const float* s, const float* s_next, const float* dh, const float* dh2,
               int dh2_stride, const float* dh3, int dh3_stride, float* ds, float* bias, int bias_stride) {
  for (int i = 0; i < m; i++, gates += blocks(4 * k), s += k, s_next += k, dh += k, dh2 += dh2_stride,
           dh3 += dh3 ? dh3_stride : 0, ds += k, bias += bias_stride) {
    float din[4 * k];
    lstm_backward_of(k, gates, s, s_next, dh, dh2, dh3, ds, din);
    put<4 * k>(1, din, 0, gates, 0, bias, 0);
  }
}

// --- The glimpses --------------------------------------------------------------------------------------------------

struct Share {  // a thread's images
  int b, first, m;
  template <class T>
  T* of(T* rows, int columns, int t = 0) const {
    return rows + (static_cast<int64_t>(t) * b + first) * columns;
  }
};

class Scratch {  // rows of zeros, which begin where a vector may
  struct alignas(64) Line { float values[16]; };
  std::vector<Line> lines;

 public:
  float* rows;
  Scratch(int m, int columns) : lines((static_cast<size_t>(m) * columns + 15) / 16), rows(lines.data()->values) {}
};

struct Forward {
  const float *x, *eps;                                           // (b, c h line), (t, b, z)
  const factor *enc, *dec, *post, *head;                            // weights, from enc_in, dec_in, h_enc and h_dec
  const float *enc_bias, *dec_bias, *post_bias, *head_bias;       // (b or 1, 4e), (4d), (2z), (HEADS)
  factor *enc_in, *dec_in;                                          // (rows, b, KE), (rows, b, KD)
  factor *gates_enc, *gates_dec;                                    // (rows, b, GE), (rows, b, GD)
  float *r, *s_enc, *s_dec, *canvas, *heads;                      // (rows, b, ...)
  float *z, *q, *h_enc, *h_dec;  // (b, z), (t, b, 2z), (b, e), (b, d): the last two of the first state, then of the last
  int64_t steps, rows, bias_rows;  // rows: steps + 1, or 2 where nothing is kept; bias_rows: b, or 1 for all images

  void run(const Share& images) const {
    const int m = images.m;
    auto of = [&](auto* rows, int columns, int t = 0) { return images.of(rows, columns, t); };
    float *h_enc = of(this->h_enc, E), *h_dec = of(this->h_dec, D), *z = of(this->z, Z);
    put<E>(m, h_enc, E, of(enc_in, KE) + H_ENC, KE);
    put<D>(m, h_dec, D, of(enc_in, KE) + H_DEC, KE);
    put<D>(m, h_dec, D, of(dec_in, KD) + Z_H_DEC, KD);
    product(m, HEADS, D, of(enc_in, KE) + H_DEC, KE, head, head_bias, of(heads, HEADS), HEADS);
    const float* bias = bias_rows > 1 ? of(enc_bias, 4 * E) : enc_bias;
    Scratch gates(m, GATES);
    for (int t = 0; t < steps; t++) {
      const int now = t % rows, next = (t + 1) % rows;
      float *read = of(r, R, now), *written = of(heads, HEADS, next);
      factor *into_enc = of(enc_in, KE, now), *into_dec = of(dec_in, KD, now);
      factor *into_next = of(enc_in, KE, next), *into_next_dec = of(dec_in, KD, next);

      read_forward(m, of(x, pixels), of(canvas, pixels, now), of(heads, HEADS, now), HEADS, read, R);  // 3, 4
      put<R>(m, read, R, into_enc, KE);
      product(m, 4 * E, KE, into_enc, KE, enc, nullptr, gates.rows, GATES);
      lstm<E>(m, gates.rows, GATES, bias, bias_rows > 1 ? 4 * E : 0, of(s_enc, E, now), of(gates_enc, GE, now),
              of(s_enc, E, next), h_enc);  // 5
      put<E>(m, h_enc, E, into_next + H_ENC, KE);
      product(m, 2 * Z, E, into_next + H_ENC, KE, post, post_bias, of(q, 2 * Z, t), 2 * Z);  // 1, 2
      sample_forward(m, Z, of(q, 2 * Z, t), of(eps, Z, t), z);                        // 6
      put<Z>(m, z, Z, into_dec, KD);
      product(m, 4 * D, KD, into_dec, KD, dec, nullptr, gates.rows, GATES);
      lstm<D>(m, gates.rows, GATES, dec_bias, 0, of(s_dec, D, now), of(gates_dec, GD, now), of(s_dec, D, next), h_dec);  // 7
      put<D>(m, h_dec, D, into_next + H_DEC, KE);
      put<D>(m, h_dec, D, into_next_dec + Z_H_DEC, KD);
      product(m, HEADS, D, into_next + H_DEC, KE, head, head_bias, written, HEADS);
      write_forward(m, written + RAW, HEADS, of(canvas, pixels, now), of(canvas, pixels, next));  // 8
    }
  }
};

struct Backward {
  const float *x, *eps;
  const factor *enc, *dec, *post, *head;  // weights, transposed
  const float *r, *s_enc, *s_dec, *canvas, *heads, *q;
  factor *gates_enc, *gates_dec;                              // become the gradients of their inputs
  float* d_q;                                               // of q from elsewhere; becomes that of q
  float *d_h_enc, *d_s_enc, *d_h_dec, *d_s_dec, *d_canvas;  // of the last state; become those of the first
  factor *d_post, *d_heads;                                   // (t, b, KQ), (t + 1, b, KH)
  float *enc_bias, *dec_bias, *post_bias, *head_bias;       // (b, 4e), (b, 4d), (b, 2z), (b, HEADS): zeros, whose sums
  int64_t steps, bias_rows;                                 // become the gradients of the biases, of bias_rows images

  void run(const Share& images) const {
    const int m = images.m;
    auto of = [&](auto* rows, int columns, int t = 0) { return images.of(rows, columns, t); };
    float *d_s_enc = of(this->d_s_enc, E), *d_s_dec = of(this->d_s_dec, D), *d_canvas = of(this->d_canvas, pixels);
    float *d_h_enc = of(this->d_h_enc, E), *d_h_dec = of(this->d_h_dec, D);
    // [r, h_dec, h_enc] and [z, h_dec] of a glimpse later; what else feeds h_enc and h_dec; the heads
    Scratch enc_in(m, KE), dec_in(m, KD), h_enc(m, E), h_dec(m, D), d_raw(m, HEADS);
    for (int i = 0; i < m; i++) {
      std::copy_n(d_h_dec + i * D, D, enc_in.rows + i * KE + H_DEC);
      std::copy_n(d_h_enc + i * E, E, enc_in.rows + i * KE + H_ENC);
    }
    for (int t = static_cast<int>(steps) - 1; t >= 0; t--) {
      float* d_q = of(this->d_q, 2 * Z, t);
      factor *gates = of(gates_dec, GD, t);
      factor *d_head = of(d_heads, KH, t + 1), *d_post = of(this->d_post, KQ, t);

      write_backward(m, of(heads, HEADS, t + 1) + RAW, HEADS, d_canvas, d_raw.rows + RAW, HEADS);  // 8
      put<HEADS>(m, d_raw.rows, HEADS, d_head, KH, of(head_bias, HEADS), 0);
      product(m, D, KH, d_head, KH, head, nullptr, h_dec.rows, D);
      lstm_back<D>(m, gates, of(s_dec, D, t), of(s_dec, D, t + 1), h_dec.rows, enc_in.rows + H_DEC, KE,
                   dec_in.rows + Z_H_DEC, KD, d_s_dec,
                   of(dec_bias, 4 * D), 0);  // 7
      product(m, KD, 4 * D, gates, GD, dec, nullptr, dec_in.rows, KD);
      sample_backward(m, Z, of(q, 2 * Z, t), of(eps, Z, t), dec_in.rows, KD, d_q);  // 6
      put<2 * Z>(m, d_q, 2 * Z, d_post, KQ, of(post_bias, 2 * Z), 0);
      product(m, E, KQ, d_post, KQ, post, nullptr, h_enc.rows, E);  // 1, 2
      gates = of(gates_enc, GE, t);
      lstm_back<E>(m, gates, of(s_enc, E, t), of(s_enc, E, t + 1), h_enc.rows, enc_in.rows + H_ENC, KE, nullptr, 0, d_s_enc,
                   of(enc_bias, 4 * E), bias_rows > 1 ? 4 * E : 0);  // 5
      product(m, KE, 4 * E, gates, GE, enc, nullptr, enc_in.rows, KE);
      read_backward(m, of(x, pixels), of(canvas, pixels, t), of(heads, HEADS, t), HEADS, of(r, R, t), R,
                    enc_in.rows, KE, d_raw.rows, HEADS, d_canvas);  // 3, 4
    }
    // The first read's window is of the first state; nothing was written by it.
    for (int i = 0; i < m; i++) std::fill_n(d_raw.rows + i * HEADS + RAW, HEADS - RAW, 0.0f);
    put<HEADS>(m, d_raw.rows, HEADS, of(d_heads, KH), KH, of(head_bias, HEADS), 0);
    product(m, D, KH, of(d_heads, KH), KH, head, nullptr, h_dec.rows, D);
    for (int i = 0; i < m; i++) {
      std::copy_n(enc_in.rows + i * KE + H_ENC, E, d_h_enc + i * E);
      const float *of_enc_in = enc_in.rows + i * KE + H_DEC, *of_dec_in = dec_in.rows + i * KD + Z_H_DEC;
      for (int k = 0; k < D; k++) d_h_dec[i * D + k] = h_dec.rows[i * D + k] + of_enc_in[k] + of_dec_in[k];
    }
  }
};

// Call f(first, next) for the shares of `count` things: in PyTorch's own threads, which are awake, where they are GNU
// OpenMP's; otherwise in new ones, or in this one where the system gives no more.
template <class F>
void in_shares(int count, int threads, F f) {
  std::atomic<int> taken{0};
  auto take = [&] {
    for (int share; (share = taken++) < threads;) {
      auto begin = [&](int of) { return static_cast<int>(static_cast<int64_t>(count) * of / threads); };
      f(begin(share), begin(share + 1));
    }
  };
#ifdef POOL
  if (GOMP_parallel && threads > 1) {
    GOMP_parallel([](void* take_some) { (*static_cast<decltype(take)*>(take_some))(); }, &take, threads, 0);
    return;
  }
#endif
  std::vector<std::thread> others;
  try {
    while (static_cast<int>(others.size()) + 1 < threads) others.emplace_back(take);
  } catch (const std::system_error&) {
  }
  take();
  for (std::thread& other : others) other.join();
}

template <class Pass>
int run(const void* pass, int fields, int b, int threads) {
  Pass of;
  if (fields * sizeof(int64_t) != sizeof of) return 1;
  std::memcpy(&of, pass, sizeof of);
  in_shares(b, threads, [&](int first, int next) {
    [[maybe_unused]] Tiles tiles;
    of.run({b, first, next - first});
  });
  return 0;
}

}  // namespace

// What makes the products.
EXPORT const char* draw_products() {
#if defined(AMX)
  return "AMX";
#elif defined(AVX512BF16)
  return "AVX512-BF16";
#else
  return "floats";
#endif
}

// Whether the system lets this process use that, from now on.
EXPORT int draw_allowed() {
#ifdef AMX
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
  return 1;
#endif
}

// A matrix (n, k), its values so many floats apart, to the order in which products read it.
EXPORT void draw_pack(const float* W, int n, int k, int64_t n_stride, int64_t k_stride, factor* to, int threads) {
  const int parts = blocks(k) / BLOCK;
  in_shares(blocks(n) / 16 * parts, threads, [&](int first, int next) {
    for (int tile = first; tile < next; tile++) {
      const int column = tile / (2 * parts) * BLOCK + tile % 2 * 16, step = tile / 2 % parts * BLOCK;
      const float* from = W + column * n_stride + step * k_stride;
      const int columns = std::min(16, n - column), steps = std::min(BLOCK, k - step);
      factor* at = to + static_cast<int64_t>(tile) * 16 * BLOCK;
      for (int i = 0; i < BLOCK; i++)
        for (int j = 0; j < 16; j++) {
          factor& value = at[i / PER_WORD * PER_WORD * 16 + j * PER_WORD + i % PER_WORD];
          value = i < steps && j < columns ? as_factor(from[j * n_stride + i * k_stride]) : 0;
        }
    }
  });
}

// The glimpses from the fields of a Forward, 8 bytes each: the places of tensors, and sizes. 1 if there are others.
EXPORT int draw_forward(const void* pass, int fields, int b, int threads) { return run<Forward>(pass, fields, b, threads); }

// Their gradients, from those of a Backward.
EXPORT int draw_backward(const void* pass, int fields, int b, int threads) { return run<Backward>(pass, fields, b, threads); }
