// All glimpses of a batch in one launch, forward or backward, for a CUDA device with thread block clusters.
//
// Called from cuda.py, which prepares the weights and makes the weights' gradients from what the backward pass leaves.
// A cluster of 16 blocks takes 16 images and shares nothing with the others. A block keeps its sixteenth of every weight
// matrix in registers, from the first glimpse to the last: it makes its own units of the LSTMs and its own latents for
// all 16 images, and does the windows, filters and canvas of one of them. What it has made it sends into the shared
// memory of all blocks, four times a glimpse, as stores that are counted where they arrive: the receiver waits for as
// many bytes as it expects, and nobody for anything else. Since each block waits for all others each time, none can
// overwrite what another still reads. Factors of products are bfloat16, sums and everything else float32, the heads'
// products included.
//
// Compiled for the sizes of one model: HEIGHT, WIDTH, READ_N, WRITE_N, HIDDEN (of both LSTMs) and Z_SIZE. Names and the
// meaning of values are those of cpu.py; equation numbers are the paper's. Without nvcc it is plain C++ that the
// tests run on the CPU.

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace {

struct alignas(16) Chunk { uint32_t words[4]; };
using Mail = uint64_t;
using bf16 = __nv_bfloat16;
extern __shared__ __align__(16) char block_memory[];

__device__ __forceinline__ bf16 to_bf16(float v) { return __float2bfloat16_rn(v); }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float fast_exp(float v) { return __expf(v); }
__device__ __forceinline__ float inverse(float v) { return __fdividef(1.0f, v); }
__device__ __forceinline__ char* shared_memory() { return block_memory; }
__device__ __forceinline__ void block_sync() { __syncthreads(); }
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

__device__ __forceinline__ uint32_t shared_address(const void* own) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(own));
}

// A block's mail is complete once its expected bytes are here; then the next may be expected. Initial: the first one.
__device__ __forceinline__ void expect(Mail* mail, int bytes, bool initial = false) {
  if (initial) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(mail)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mail)), "r"(bytes) : "memory");
}

// Waits for the mail of this parity of its number.
__device__ __forceinline__ void receive(Mail* mail, int parity) {
  asm volatile(
      "{\n.reg .pred here;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 here, [%0], %1;\n"
      "@!here bra again;\n}" ::"r"(shared_address(mail)), "r"(parity) : "memory");
}

// Puts 16 bytes where another block of the cluster has what is `to` here, and counts them as its mail.
__device__ __forceinline__ void send(const Chunk& value, void* to, Mail* mail, int rank) {
  uint32_t there, its_mail;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(its_mail) : "r"(shared_address(mail)), "r"(rank));
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there),
               "r"(value.words[0]), "r"(value.words[1]), "r"(value.words[2]), "r"(value.words[3]), "r"(its_mail)
               : "memory");
}

// c (16, 8) += a (16, 16) b (16, 8), over the lanes of a warp as the PTX manual lays out m16n8k16.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace
#else
#include <cmath>

#include "cuda_on_cpu.h"
#endif

namespace {

constexpr int IMAGES = 16, RANKS = 16, THREADS = 256, WARPS = 8, LANES = 32;
constexpr int h = HEIGHT, w = WIDTH, pixels = h * w, n_read = READ_N, n_write = WRITE_N;
constexpr int N = HIDDEN, U = N / RANKS;               // units of an LSTM, and those that a block makes
constexpr int Z = Z_SIZE, ZU = 8, KZ = ZU * RANKS;     // latents, those that a block makes, and columns as R's
constexpr int R = 2 * n_read * n_read, KR = (R / 16 + 1) * 16;  // what is read, and its columns, the last one of ones
constexpr int KE = KR + N + N;                         // columns of enc_in: [r, h_dec, h_enc]
constexpr int HEADS = 5 + 5 + n_write * n_write;       // [read window, write window, patch]
constexpr int KH = (HEADS + 7) / 8 * 8;                // columns of d_heads
constexpr int FILTERS = 2 * n_read + 2 * n_write;      // rows of F: read X, read Y, write X, write Y
constexpr int SIDE = h > w ? h : w;
constexpr int LINE = w | 1;                            // floats of a line of pixels, so that columns lie in different banks
constexpr int PIXELS = (pixels + THREADS - 1) / THREADS;  // of a thread, the last one perhaps beyond the image
constexpr int PAD = 8;  // elements after a row of bfloat16, so that its fragments lie in different banks
static_assert(N % 128 == 0 && N <= 256 && Z < KZ && IMAGES * U <= THREADS);

struct alignas(16) Gates { float i, f, g, o; };
struct alignas(16) Four { float values[4]; };
struct alignas(8) Pair { float first, second; };

struct Prepare {
  const float *enc, *dec, *post;                        // the model's weights: (4N, R + 2N), (4N, Z + N), (2Z, N)
  bf16 *w_enc, *w_dec, *w_q, *w_enc_t, *w_dec_t, *w_q_t;  // the kernels', and transposed: see below
  int32_t blocks;
};

struct Forward {
  const float *x, *eps;                                      // (b, pixels), (t, b, z)
  const float *h_enc0, *s_enc0, *h_dec0, *s_dec0, *canvas0;  // (b, ...)
  const bf16 *w_enc, *w_dec, *w_q;                           // (4N, KE), (4N, KZ + N), (2 KZ, N)
  const float *b_enc, *b_dec, *b_q, *w_heads, *b_heads;      // (4N), (4N), (2 KZ), (HEADS, N), (HEADS)
  bf16 *enc_in, *dec_in;                                     // (rows, b, KE), (rows, b, KZ): z alone
  Gates *gates_enc, *gates_dec;                              // (rows, b, N)
  float *s_enc, *s_dec, *canvas, *heads;                     // (rows, b, ...)
  float *q, *h_enc, *h_dec;                                  // (t, b, 2z), (b, N), (b, N)
  int32_t steps, images, rows;                               // rows: steps + 1, or 2 where nothing is kept
};

struct Backward {
  const float *x, *eps;
  const Gates *gates_enc, *gates_dec;
  const float *s_enc, *s_dec, *canvas, *heads, *q;
  const bf16 *w_enc_t, *w_dec_t, *w_q_t;               // transposed: (KE, 4N), (KZ + N, 4N), (N, 2 KZ)
  const float *w_heads, *d_q;                          // (HEADS, N), (t, b, 2z)
  float *d_h_enc, *d_s_enc, *d_h_dec, *d_s_dec, *d_canvas;  // of the last state; become those of the first
  bf16 *d_gates_enc, *d_gates_dec, *d_post, *d_heads;  // (t, b, 4N), (t, b, 4N), (t, b, 2 KZ), (t + 1, b, KH)
  int32_t steps, images;
};

__device__ __forceinline__ float sigmoid(float v) { return inverse(1.0f + fast_exp(-v)); }
__device__ __forceinline__ float tanh_(float v) { return 1.0f - 2.0f * inverse(fast_exp(2.0f * v) + 1.0f); }

template <int LANES_OF_SUM = LANES>  // neighbours, a power of two
__device__ __forceinline__ float sum_of_lanes(float v) {
#pragma unroll
  for (int mask = LANES_OF_SUM / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

__device__ __forceinline__ uint32_t word(const bf16* at) { return *reinterpret_cast<const uint32_t*>(at); }

// --- Products: 16 images by 8-column tiles; a warp's part of the weights stays in its registers -------------------

// Columns j * 8 + (0..7) of W^T: row(column) is where that row of W begins for this warp.
template <int STEPS, int TILES, class Row>
__device__ __forceinline__ void load(uint32_t (&b)[STEPS][TILES][2], int lane, Row row) {
#pragma unroll
  for (int j = 0; j < TILES; ++j) {
    const bf16* at = row(j * 8 + lane / 4) + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) b[s][j][0] = word(at + s * 16), b[s][j][1] = word(at + s * 16 + 8);
  }
}

// c += a W^T, a (16, STEPS * 16) with rows `stride` apart.
template <int STEPS, int TILES>
__device__ __forceinline__ void multiply(
    float (&c)[TILES][4], const bf16* a, int stride, int lane, const uint32_t (&b)[STEPS][TILES][2]) {
  const bf16* at = a + lane / 4 * stride + lane % 4 * 2;
#pragma unroll
  for (int s = 0; s < STEPS; ++s, at += 16) {
    const uint32_t f[4] = {word(at), word(at + 8 * stride), word(at + 8), word(at + 8 * stride + 8)};
#pragma unroll
    for (int j = 0; j < TILES; ++j) mma(c[j], f, b[s][j]);
  }
}

template <int TILES>
__device__ __forceinline__ void clear(float (&c)[TILES][4]) {
#pragma unroll
  for (int j = 0; j < TILES; ++j)
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = 0;
}

// One warp's sums, of its part of the columns of a, to be added to the others'.
template <int TILES>
__device__ __forceinline__ void store(float* sums, int stride, int lane, const float (&c)[TILES][4]) {
  float* at = sums + lane / 4 * stride + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < TILES; ++j) {
    *reinterpret_cast<Pair*>(at + j * 8) = {c[j][0], c[j][1]};
    *reinterpret_cast<Pair*>(at + 8 * stride + j * 8) = {c[j][2], c[j][3]};
  }
}

// --- Windows and filters, eqs. 19-26, of the image that a block has ------------------------------------------------

struct Window {  // eqs. 21-24, gamma aside
  float g_X, g_Y, delta, sigma2;
  __device__ __forceinline__ Window(const float* raw, int n)
      : g_X((w + 1) / 2.0f * (raw[0] + 1) - 1),
        g_Y((h + 1) / 2.0f * (raw[1] + 1) - 1),
        delta((SIDE - 1.0f) / (n > 1 ? n - 1 : 1) * expf(raw[3])),
        sigma2(expf(raw[2])) {}
};

struct Filter {  // one row of F, by its index: which window, axis and position it has
  bool write, vertical;
  int n, i, size;
  __device__ __forceinline__ explicit Filter(int row) {
    write = row >= 2 * n_read;
    n = write ? n_write : n_read;
    const int of_window = write ? row - 2 * n_read : row;
    vertical = of_window >= n;
    i = vertical ? of_window - n : of_window;
    size = vertical ? h : w;
  }
  __device__ __forceinline__ float mu(const Window& at) const {  // 19, 20
    return (vertical ? at.g_Y : at.g_X) + (i - (n - 1) / 2.0f) * at.delta;
  }
  __device__ __forceinline__ float nearest_pixel(float mu) const { return fminf(fmaxf(rintf(mu), 0.0f), size - 1.0f); }
};

constexpr int READ_X = 0, READ_Y = n_read, WRITE_X = 2 * n_read, WRITE_Y = 2 * n_read + n_write;
typedef float Filters[FILTERS][SIDE];

// A row belongs to 16 lanes; lanes without a row do the last one once more.
constexpr int ROW_LANES = 16, ROWS = THREADS / ROW_LANES;
__device__ __forceinline__ float sum_of_row(float v) { return sum_of_lanes<ROW_LANES>(v); }

// Eqs. 25-26.
__device__ __forceinline__ void make_filters(const float* heads, Filters& F, int thread) {
#pragma unroll
  for (int first = 0; first < FILTERS; first += ROWS) {
    const int row = min(first + thread / ROW_LANES, FILTERS - 1);
    const Filter filter(row);
    const Window at(heads + (filter.write ? 5 : 0), filter.n);
    const float mu = filter.mu(at), a0 = filter.nearest_pixel(mu), scale = -0.5f / at.sigma2;
    float f[(SIDE + ROW_LANES - 1) / ROW_LANES], sum = 0;
#pragma unroll
    for (int i = 0; i * ROW_LANES < SIDE; ++i) {
      const int a = i * ROW_LANES + thread % ROW_LANES;
      sum += f[i] = a < filter.size ? expf((a - a0) * (a + a0 - 2 * mu) * scale) : 0.0f;
    }
    sum = 1 / sum_of_row(sum);
#pragma unroll
    for (int i = 0; i * ROW_LANES < SIDE; ++i)
      if (const int a = i * ROW_LANES + thread % ROW_LANES; a < filter.size) F[row][a] = f[i] * sum;
  }
}

typedef float RawGradients[FILTERS][5];  // what each row gives to the raw values of its window, up to a common factor

// From the gradients dF(row, a) of some rows to what they give to their window's raw values.
template <class D>
__device__ __forceinline__ void filters_backward(
    const float* heads, const Filters& F, int begin, int end, RawGradients& given, int thread, D dF) {
  for (int first = begin; first < end; first += ROWS) {
    const int row = min(first + thread / ROW_LANES, end - 1), lane = thread % ROW_LANES;
    const Filter filter(row);
    const Window at(heads + (filter.write ? 5 : 0), filter.n);
    const float mu = filter.mu(at), a0 = filter.nearest_pixel(mu);
    float product = 0, mean = 0, mean2 = 0, moment = 0, moment2 = 0;
#pragma unroll
    for (int i = 0; i * ROW_LANES < SIDE; ++i)
      if (const int a = i * ROW_LANES + lane; a < filter.size) {
        const float f = F[row][a], fd = f * dF(row, a), far = a - a0, square = (a - a0) * (a + a0 - 2 * mu);
        product += fd, mean += f * far, mean2 += f * square, moment += fd * far, moment2 += fd * square;
      }
    product = sum_of_row(product), mean = sum_of_row(mean), mean2 = sum_of_row(mean2);
    moment = sum_of_row(moment), moment2 = sum_of_row(moment2);
    const float d_mu = (moment - product * mean) / at.sigma2;
    const float d_log_sigma2 = (moment2 - product * mean2) * 0.5f / at.sigma2;
    const float d_log_delta = (filter.i - (filter.n - 1) / 2.0f) * at.delta * d_mu;
    if (lane == 0) given[row][0] = filter.vertical ? 0.0f : (w + 1) / 2.0f * d_mu;
    if (lane == 1) given[row][1] = filter.vertical ? (h + 1) / 2.0f * d_mu : 0.0f;
    if (lane == 2) given[row][2] = d_log_sigma2;
    if (lane == 3) given[row][3] = d_log_delta;
    if (lane == 4) given[row][4] = filter.vertical ? 0.0f : filter.write ? -product : product;
  }
}

// --- The weights as the kernels want them: bfloat16, columns of zeros after r and z, and transposed ------------------

// W[row, column] of the model, for the kernels' row and column; a thread does eight rows of a column.
template <class From>
__device__ __forceinline__ void prepare_matrix(bf16* to, bf16* transposed, int rows, int columns, int thread, int threads, From from) {
  for (int i = thread; i < rows / 8 * columns; i += threads) {
    const int row = i / columns * 8, column = i % columns;
    union { bf16 values[8]; Chunk chunk; } eight;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      eight.values[j] = to_bf16(from(row + j, column));
      to[static_cast<size_t>(row + j) * columns + column] = eight.values[j];
    }
    *reinterpret_cast<Chunk*>(transposed + static_cast<size_t>(column) * rows + row) = eight.chunk;
  }
}

__global__ void __launch_bounds__(THREADS) prepare(const Prepare p) {
  const int thread = blockIdx.x * THREADS + threadIdx.x, threads = p.blocks * THREADS;
  prepare_matrix(p.w_enc, p.w_enc_t, 4 * N, KE, thread, threads, [&](int row, int column) {
    const int of = column < R ? column : column - (KR - R);
    return column < R || column >= KR ? p.enc[row * (R + 2 * N) + of] : 0.0f;
  });
  prepare_matrix(p.w_dec, p.w_dec_t, 4 * N, KZ + N, thread, threads, [&](int row, int column) {
    const int of = column < Z ? column : column - (KZ - Z);
    return column < Z || column >= KZ ? p.dec[row * (Z + N) + of] : 0.0f;
  });
  prepare_matrix(p.w_q, p.w_q_t, 2 * KZ, N, thread, threads, [&](int row, int column) {
    return row % KZ < Z ? p.post[(row / KZ * Z + row % KZ) * N + column] : 0.0f;
  });
}

// --- Forward -------------------------------------------------------------------------------------------------------

struct ForwardMemory {
  alignas(16) bf16 h_enc[2][IMAGES][N + PAD], h_dec[2][IMAGES][N + PAD];  // of this glimpse and the one before
  bf16 r[IMAGES][KR + PAD], z[IMAGES][KZ + PAD];
  bf16 made[IMAGES][U], made_r[KR];  // what this block has made, before it goes to all
  Mail r_mail, h_enc_mail, z_mail, h_dec_mail;
  float sums[WARPS * IMAGES * 40];  // (4, IMAGES, 4U + 8) for the LSTMs, (8, IMAGES, 24) for q
  float w_heads[HEADS][N], b_heads[HEADS], head[HEADS];
  float images[2][pixels], canvas[pixels];  // x and x_hat
  float stroke[n_write][w], seen[2][n_read][w];
  Filters F;
};
static_assert(4 * (4 * U + 8) <= WARPS * 40);

// The rows that a block has made for the images of its cluster, in pieces of WIDE, to `to` of every block and to
// `global`; rows are `stride` and `apart` elements from each other, pieces `step`.
template <int WIDE, int PIECES = 1>
__device__ __forceinline__ void give(
    const bf16 (*made)[WIDE * PIECES], bf16* to, int stride, Mail* mail, bf16* global, size_t apart, int step, int rank,
    int thread) {
  constexpr int chunks = WIDE / 8, items = IMAGES * PIECES * chunks;
  for (int item = thread % LANES; item < items; item += LANES) {
    const int part = item % chunks, piece = item / chunks % PIECES, image = item / (chunks * PIECES);
    const Chunk value = reinterpret_cast<const Chunk*>(made[image])[item % (chunks * PIECES)];
    bf16* own = to + image * stride + piece * step + part * 8;
#pragma unroll
    for (int other = thread / LANES; other < RANKS; other += WARPS) send(value, own, mail, (rank + other) % RANKS);
  }
  for (int item = thread; item < items; item += THREADS) {
    const int part = item % chunks, piece = item / chunks % PIECES, image = item / (chunks * PIECES);
    reinterpret_cast<Chunk*>(global + image * apart + piece * step)[part] =
        reinterpret_cast<const Chunk*>(made[image])[item % (chunks * PIECES)];
  }
}

__global__ void __launch_bounds__(THREADS, 1) forward(const Forward p) {
  ForwardMemory& m = *reinterpret_cast<ForwardMemory*>(shared_memory());
  const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
  const int rank = cluster_rank(), first = blockIdx.x / RANKS * IMAGES;  // the cluster's first image
  const int own = first + rank;                                         // the block's image
  const size_t b = p.images;
  auto row = [&](int t) { return static_cast<size_t>(t % p.rows) * b; };

  // Warps 0-3 have the first half of the columns of the gates, 4-7 the second, each of them a quarter of the inputs.
  const int quarter = warp % 4, half = warp / 4;
  constexpr int TILES = U / 4, GATES = 4 * U + 8;
  auto gate_row = [&](int column) {  // columns are [i, f, g, o] of the block's units
    column += half * 2 * U;
    return static_cast<size_t>(column / U * N + rank * U + column % U);
  };
  uint32_t enc_r[KR / 16][TILES][2], enc_h[N / 32][TILES][2], dec_h[N / 64][TILES][2], dec_z[KZ / 64][TILES][2];
  uint32_t post[N / 128][2][2];
  load(enc_r, lane, [&](int column) { return p.w_enc + gate_row(column) * KE; });
  load(enc_h, lane, [&](int column) { return p.w_enc + gate_row(column) * KE + KR + quarter * (N / 2); });
  load(dec_z, lane, [&](int column) { return p.w_dec + gate_row(column) * (KZ + N) + quarter * (KZ / 4); });
  load(dec_h, lane, [&](int column) { return p.w_dec + gate_row(column) * (KZ + N) + KZ + quarter * (N / 4); });
  load(post, lane, [&](int column) {
    return p.w_q + static_cast<size_t>(column / ZU * KZ + rank * ZU + column % ZU) * N + warp * (N / 8);
  });

  // A thread has one unit of one image, and one latent of one image.
  const int image = thread / U, unit = thread % U, k = rank * U + unit;
  const bool has_unit = thread < IMAGES * U;
  const int z_image = thread / ZU, z_unit = rank * ZU + thread % ZU;
  const bool has_latent = thread < IMAGES * ZU;
  const size_t at_unit = static_cast<size_t>(first + image) * N + k;
  float s_enc = 0, s_dec = 0, h_enc = 0, h_dec = 0, bias_enc[4] = {}, bias_dec[4] = {}, bias_mu = 0, bias_log_sigma = 0;
  if (has_unit) {
    s_enc = p.s_enc0[at_unit], s_dec = p.s_dec0[at_unit];
    h_enc = p.h_enc0[at_unit], h_dec = p.h_dec0[at_unit];
    p.s_enc[at_unit] = s_enc, p.s_dec[at_unit] = s_dec;
    for (int gate = 0; gate < 4; ++gate) bias_enc[gate] = p.b_enc[gate * N + k], bias_dec[gate] = p.b_dec[gate * N + k];
  }
  if (has_latent) bias_mu = p.b_q[z_unit], bias_log_sigma = p.b_q[KZ + z_unit];
  for (int i = thread; i < IMAGES * N; i += THREADS) {
    const size_t from = static_cast<size_t>(first) * N + i;
    m.h_enc[0][i / N][i % N] = to_bf16(p.h_enc0[from]);
    m.h_dec[0][i / N][i % N] = to_bf16(p.h_dec0[from]);
  }
  if (has_unit) {
    bf16* to = p.enc_in + static_cast<size_t>(first + image) * KE + KR + k;
    to[0] = to_bf16(h_dec), to[N] = to_bf16(h_enc);
  }
  for (int i = thread; i < IMAGES * (KR + PAD); i += THREADS) m.r[i / (KR + PAD)][i % (KR + PAD)] = to_bf16(0);
  for (int i = thread; i < HEADS * N; i += THREADS) m.w_heads[i / N][i % N] = p.w_heads[i];
  for (int i = thread; i < HEADS; i += THREADS) m.b_heads[i] = p.b_heads[i];
  for (int i = thread; i < pixels; i += THREADS) {
    const size_t from = static_cast<size_t>(own) * pixels + i;
    m.images[0][i] = p.x[from];
    p.canvas[from] = m.canvas[i] = p.canvas0[from];
  }
  constexpr int R_BYTES = RANKS * ((R + 7) / 8) * 16, H_BYTES = IMAGES * N * 2, Z_BYTES = IMAGES * KZ * 2;
  if (thread == 0) {
    expect(&m.r_mail, R_BYTES, true), expect(&m.z_mail, Z_BYTES, true);
    expect(&m.h_enc_mail, H_BYTES, true), expect(&m.h_dec_mail, H_BYTES, true);
  }
  if (thread < KR) m.made_r[thread] = to_bf16(0);
  cluster_arrive();
  cluster_wait();

  // After t glimpses: the windows and the patch that h_dec asks for, the stroke of glimpse t, the read of the next.
  auto attend = [&](int t) {
    constexpr int MOST = (HEADS + WARPS - 1) / WARPS;
    float dots[MOST] = {};
    const bf16* from = m.h_dec[t % 2][rank];
    for (int i = lane; i < N; i += LANES) {
      const float value = to_float(from[i]);
#pragma unroll
      for (int j = 0; j < MOST; ++j)
        if (j * WARPS + warp < HEADS) dots[j] += value * m.w_heads[j * WARPS + warp][i];
    }
#pragma unroll
    for (int j = 0; j < MOST; ++j) dots[j] = sum_of_lanes(dots[j]);
#pragma unroll
    for (int j = 0; j < MOST; ++j)
      if (const int output = j * WARPS + warp; lane == 0 && output < HEADS) m.head[output] = dots[j] + m.b_heads[output];
    block_sync();
    for (int i = thread; i < HEADS; i += THREADS) p.heads[(row(t) + own) * HEADS + i] = m.head[i];
    make_filters(m.head, m.F, thread);
    block_sync();
    if (t > 0) {  // 28, 29
      for (int i = thread; i < n_write * w; i += THREADS) {
        float sum = 0;
        for (int j = 0; j < n_write; ++j) sum += m.head[10 + i / w * n_write + j] * m.F[WRITE_X + j][i % w];
        m.stroke[i / w][i % w] = sum;
      }
      block_sync();
    }
    const float over_gamma = expf(-m.head[5 + 4]);
#pragma unroll
    for (int k = 0; k < PIXELS; ++k) {
      const int i = k * THREADS + thread;
      if (i >= pixels) break;
      float canvas = m.canvas[i];
      if (t > 0) {
        float stroke = 0;
        for (int j = 0; j < n_write; ++j) stroke += m.F[WRITE_Y + j][i / w] * m.stroke[j][i % w];
        m.canvas[i] = canvas += over_gamma * stroke;  // 8
        p.canvas[(row(t) + own) * pixels + i] = canvas;
      }
      m.images[1][i] = m.images[0][i] - sigmoid(canvas);  // 3
    }
    block_sync();
    if (thread == 0) p.enc_in[(row(t) + own) * KE + KR - 1] = to_bf16(1);  // the bias' input, for its gradient
    if (t == p.steps) return;
    for (int i = thread; i < 2 * n_read * w; i += THREADS) {
      const int kind = i / (n_read * w), j = i / w % n_read, column = i % w;
      float sum = 0;
      for (int y = 0; y < h; ++y) sum += m.F[READ_Y + j][y] * m.images[kind][y * w + column];
      m.seen[kind][j][column] = sum;
    }
    block_sync();
    const float gamma = expf(m.head[4]);
    for (int i = warp; i < R; i += WARPS) {  // 27
      const int kind = i / (n_read * n_read), y = i / n_read % n_read, x = i % n_read;
      float sum = 0;
      for (int a = lane; a < w; a += LANES) sum += m.seen[kind][y][a] * m.F[READ_X + x][a];
      const bf16 value = to_bf16(gamma * sum_of_lanes(sum));
      if (lane == 0) m.made_r[i] = p.enc_in[(row(t) + own) * KE + i] = value;
    }
    block_sync();
    for (int i = thread; i < RANKS * ((R + 7) / 8); i += THREADS)
      send(reinterpret_cast<const Chunk*>(m.made_r)[i / RANKS], &m.r[rank][i / RANKS * 8], &m.r_mail, i % RANKS);
  };

  auto lstm = [&](float (&c)[TILES][4], const float (&bias)[4], float& s, float& h, float* kept_s, Gates* kept) {
    store(m.sums + (quarter * IMAGES) * GATES + half * 2 * U, GATES, lane, c);
    block_sync();
    if (has_unit) {
      float a[4];
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        a[gate] = bias[gate];
#pragma unroll
        for (int part = 0; part < 4; ++part) a[gate] += m.sums[(part * IMAGES + image) * GATES + gate * U + unit];
      }
      const Gates gates = {sigmoid(a[0]), sigmoid(a[1]), tanh_(a[2]), sigmoid(a[3])};
      s = gates.f * s + gates.i * gates.g;
      h = gates.o * tanh_(s);
      kept[at_unit] = gates, kept_s[at_unit] = s;
      m.made[image][unit] = to_bf16(h);
    }
    block_sync();
  };

  attend(0);
  for (int t = 0; t < p.steps; ++t) {
    const int now = t % 2, next = 1 - now;
    float c[TILES][4], c_dec[TILES][4];
    clear(c);
    multiply(c, &(quarter < 2 ? m.h_dec : m.h_enc)[now][0][quarter % 2 * (N / 2)], N + PAD, lane, enc_h);
    float eps = 0;
    if (has_latent && z_unit < Z) eps = p.eps[(t * b + first + z_image) * Z + z_unit];
    receive(&m.r_mail, now);
    if (thread == 0) expect(&m.r_mail, R_BYTES);
    if (quarter == 0) multiply(c, m.r[0], KR + PAD, lane, enc_r);
    lstm(c, bias_enc, s_enc, h_enc, p.s_enc + row(t + 1) * N, p.gates_enc + row(t) * N);  // 5
    bf16* kept_h = p.enc_in + (row(t + 1) + first) * KE + KR + rank * U;
    give<U>(m.made, &m.h_enc[next][0][rank * U], N + PAD, &m.h_enc_mail, kept_h + N, KE, 0, rank, thread);
    clear(c_dec);
    multiply(c_dec, &m.h_dec[now][0][quarter * (N / 4)], N + PAD, lane, dec_h);
    receive(&m.h_enc_mail, now);
    if (thread == 0) expect(&m.h_enc_mail, H_BYTES);
    float c_q[2][4];
    clear(c_q);
    multiply(c_q, &m.h_enc[next][0][warp * (N / 8)], N + PAD, lane, post);
    store(m.sums + warp * IMAGES * 24, 24, lane, c_q);
    block_sync();
    bf16(*made_z)[ZU] = reinterpret_cast<bf16(*)[ZU]>(m.made);
    if (has_latent) {
      float mu = bias_mu, log_sigma = bias_log_sigma;  // 1, 2
#pragma unroll
      for (int part = 0; part < WARPS; ++part) {
        mu += m.sums[(part * IMAGES + z_image) * 24 + thread % ZU];
        log_sigma += m.sums[(part * IMAGES + z_image) * 24 + ZU + thread % ZU];
      }
      if (z_unit < Z) {
        float* q = p.q + (t * b + first + z_image) * 2 * Z + z_unit;
        q[0] = mu, q[Z] = log_sigma;
      }
      made_z[z_image][thread % ZU] = to_bf16(z_unit < Z ? mu + expf(log_sigma) * eps : z_unit == KZ - 1);  // 6
    }
    block_sync();
    bf16* kept_z = p.dec_in + (row(t) + first) * KZ + rank * ZU;
    give<ZU>(made_z, &m.z[0][rank * ZU], KZ + PAD, &m.z_mail, kept_z, KZ, 0, rank, thread);
    receive(&m.z_mail, now);
    if (thread == 0) expect(&m.z_mail, Z_BYTES);
    multiply(c_dec, &m.z[0][quarter * (KZ / 4)], KZ + PAD, lane, dec_z);
    lstm(c_dec, bias_dec, s_dec, h_dec, p.s_dec + row(t + 1) * N, p.gates_dec + row(t) * N);  // 7
    give<U>(m.made, &m.h_dec[next][0][rank * U], N + PAD, &m.h_dec_mail, kept_h, KE, 0, rank, thread);
    receive(&m.h_dec_mail, now);
    if (thread == 0) expect(&m.h_dec_mail, H_BYTES);
    attend(t + 1);
  }
  if (has_unit) p.h_enc[at_unit] = h_enc, p.h_dec[at_unit] = h_dec;
}

// --- Backward ------------------------------------------------------------------------------------------------------

constexpr int R_TILES = (R + 7) / 8;
constexpr int BACK_SUMS = (R_TILES * 8 + 2 * U + 23) / 32 * 32 + 8;  // floats from one image's sums to the next's

struct BackwardMemory {
  alignas(16) bf16 d_gates_enc[IMAGES][4 * N + PAD], d_gates_dec[IMAGES][4 * N + PAD], d_post[IMAGES][2 * KZ + PAD];
  bf16 made[IMAGES][4 * U];
  alignas(16) float d_heads[IMAGES][(HEADS + 3) / 4 * 4], d_head[(HEADS + 3) / 4 * 4];  // of all images; of the block's
  float sums[WARPS * IMAGES * BACK_SUMS];
  alignas(16) float w_heads[U][(HEADS + 3) / 4 * 4];
  float images[2][h * LINE], d_canvas[h * LINE];
  float head[2][HEADS];  // of the row at hand and the one after it
  float across[n_write][SIDE], down[n_write][SIDE];          // F_Y d_canvas, d_canvas F_X^T
  float seen[2][n_read][SIDE], seen_down[2][n_read][SIDE];   // F_Y image, image F_X^T
  float d_read[R];
  RawGradients raw;
  Filters F;
  Mail heads_mail, dec_mail, post_mail, enc_mail;
};

__global__ void __launch_bounds__(THREADS, 1) backward(const Backward p) {
  BackwardMemory& m = *reinterpret_cast<BackwardMemory*>(shared_memory());
  const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
  const int rank = cluster_rank(), first = blockIdx.x / RANKS * IMAGES, own = first + rank;
  const size_t b = p.images;

  // A warp has an eighth of the gates: of what they give to [r, h_dec, h_enc] and [z, h_dec], the block's columns.
  constexpr int TILES_H = U / 8, STEPS = 4 * N / 16 / WARPS;
  uint32_t enc_r[STEPS][R_TILES][2], enc_h[STEPS][2 * TILES_H][2], dec_z[STEPS][1][2], dec_h[STEPS][TILES_H][2];
  uint32_t post[2 * KZ / 16 / WARPS][TILES_H][2];
  auto columns = [&](const bf16* weights, int column) {
    return weights + static_cast<size_t>(column) * (4 * N) + warp * (4 * N / WARPS);
  };
  load(enc_r, lane, [&](int column) { return columns(p.w_enc_t, column); });
  load(enc_h, lane, [&](int column) {
    return columns(p.w_enc_t, KR + column / U * N + rank * U + column % U);
  });
  load(dec_z, lane, [&](int column) { return columns(p.w_dec_t, rank * ZU + column); });
  load(dec_h, lane, [&](int column) { return columns(p.w_dec_t, KZ + rank * U + column); });
  load(post, lane, [&](int column) {
    return p.w_q_t + static_cast<size_t>(rank * U + column) * (2 * KZ) + warp * (2 * KZ / WARPS);
  });

  const int image = thread / U, unit = thread % U, k = rank * U + unit;
  const bool has_unit = thread < IMAGES * U;
  const int z_image = thread / ZU, z_unit = rank * ZU + thread % ZU;
  const bool has_latent = thread < IMAGES * ZU && z_unit < Z;
  const size_t at_unit = static_cast<size_t>(first + image) * N + k;
  float d_h_enc = 0, d_s_enc = 0, d_h_dec = 0, d_s_dec = 0, s_enc = 0, s_dec = 0;  // s: after the glimpse at hand
  if (has_unit) {
    d_h_enc = p.d_h_enc[at_unit], d_s_enc = p.d_s_enc[at_unit];
    d_h_dec = p.d_h_dec[at_unit], d_s_dec = p.d_s_dec[at_unit];
    s_enc = p.s_enc[p.steps * b * N + at_unit], s_dec = p.s_dec[p.steps * b * N + at_unit];
  }
  for (int i = thread; i < (HEADS + 3) / 4 * 4 * U; i += THREADS)
    m.w_heads[i % U][i / U] = i / U < HEADS ? p.w_heads[i / U * N + rank * U + i % U] : 0.0f;
  for (int i = thread; i < pixels; i += THREADS) {
    m.images[0][i / w * LINE + i % w] = p.x[static_cast<size_t>(own) * pixels + i];
    m.d_canvas[i / w * LINE + i % w] = p.d_canvas[static_cast<size_t>(own) * pixels + i];
  }
  for (int i = thread; i < HEADS; i += THREADS) m.head[p.steps % 2][i] = p.heads[(p.steps * b + own) * HEADS + i];
  for (int i = thread; i < (HEADS + 3) / 4 * 4; i += THREADS) m.d_head[i] = 0;  // the last read is of no glimpse
  block_sync();
  make_filters(m.head[p.steps % 2], m.F, thread);
  constexpr int HEADS_BYTES = IMAGES * ((HEADS + 3) / 4) * 16, GATES_BYTES = IMAGES * 4 * N * 2;
  constexpr int POST_BYTES = IMAGES * 2 * KZ * 2;
  if (thread == 0) {
    expect(&m.heads_mail, HEADS_BYTES, true), expect(&m.post_mail, POST_BYTES, true);
    expect(&m.enc_mail, GATES_BYTES, true), expect(&m.dec_mail, GATES_BYTES, true);
  }
  cluster_arrive();
  cluster_wait();

  // The gradient of all heads of the block's image after t glimpses, to every block.
  auto give_heads = [&](int t) {
    constexpr int chunks = (HEADS + 3) / 4;
    for (int i = thread; i < chunks * RANKS; i += THREADS)
      send(reinterpret_cast<const Chunk*>(m.d_head)[i % chunks], &m.d_heads[rank][i % chunks * 4], &m.heads_mail,
           i / chunks);
    for (int i = thread; i < HEADS; i += THREADS) p.d_heads[(t * b + own) * KH + i] = to_bf16(m.d_head[i]);
  };
  auto from_heads = [&] {  // what the heads' gradients make of the one of h_dec
    float sum = 0;
#pragma unroll
    for (int i = 0; i < (HEADS + 3) / 4; ++i) {
      const Four of = reinterpret_cast<const Four*>(m.w_heads[unit])[i];  // four values
      const Four d = reinterpret_cast<const Four*>(m.d_heads[image])[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += of.values[j] * d.values[j];
    }
    return sum;
  };
  // Through an LSTM cell; its gates' gradients to every block and to global memory.
  auto lstm_backward = [&](const Gates& gates, float s_before, float s, float d_h, float& d_s, bf16* d_gates, Mail* mail,
                           bf16* kept) {
    if (has_unit) {
      const float squashed = tanh_(s), d_o = d_h * squashed;
      const float d = d_s + d_h * gates.o * (1 - squashed * squashed);
      m.made[image][unit] = to_bf16(d * gates.g * gates.i * (1 - gates.i));
      m.made[image][U + unit] = to_bf16(d * s_before * gates.f * (1 - gates.f));
      m.made[image][2 * U + unit] = to_bf16(d * gates.i * (1 - gates.g * gates.g));
      m.made[image][3 * U + unit] = to_bf16(d_o * gates.o * (1 - gates.o));
      d_s = d * gates.f;
    }
    block_sync();
    give<U, 4>(m.made, d_gates + rank * U, 4 * N + PAD, mail, kept + rank * U, 4 * N, N, rank, thread);
  };
  auto total = [&](int of_image, int column) {  // of all warps' sums
    float sum = 0;
#pragma unroll
    for (int part = 0; part < WARPS; ++part) sum += m.sums[(part * IMAGES + of_image) * BACK_SUMS + column];
    return sum;
  };
  float* sums = m.sums + warp * IMAGES * BACK_SUMS;

  for (int t = p.steps - 1; t >= 0; --t) {
    // What will be needed, asked for early.
    const size_t row = t * b;
    Gates gates_enc = {}, gates_dec = {};
    float s_enc_before = 0, s_dec_before = 0, eps = 0, log_sigma = 0, d_mu = 0, d_log_sigma = 0;
    if (has_unit) {
      gates_enc = p.gates_enc[row * N + at_unit], gates_dec = p.gates_dec[row * N + at_unit];
      s_enc_before = p.s_enc[row * N + at_unit], s_dec_before = p.s_dec[row * N + at_unit];
    }
    if (has_latent) {
      const size_t at = (row + first + z_image) * 2 * Z + z_unit;
      eps = p.eps[(row + first + z_image) * Z + z_unit], log_sigma = p.q[at + Z];
      d_mu = p.d_q[at], d_log_sigma = p.d_q[at + Z];
    }
    float canvas[PIXELS] = {};
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      if (i * THREADS + thread < pixels) canvas[i] = p.canvas[(row + own) * pixels + i * THREADS + thread];
    const float head_before = thread < HEADS ? p.heads[(row + own) * HEADS + thread] : 0.0f;

    // The write of glimpse t, whose window is that of row t + 1 (29).
    const float* head = m.head[(t + 1) % 2];
    const float over_gamma = expf(-head[5 + 4]);
    for (int i = thread; i < n_write * (w + h); i += THREADS) {
      float sum = 0;
      if (i < n_write * w) {
        for (int y = 0; y < h; ++y) sum += m.F[WRITE_Y + i / w][y] * m.d_canvas[y * LINE + i % w];
        m.across[i / w][i % w] = sum;
      } else {
        const int j = (i - n_write * w) / h, y = (i - n_write * w) % h;
        for (int x = 0; x < w; ++x) sum += m.F[WRITE_X + j][x] * m.d_canvas[y * LINE + x];
        m.down[j][y] = sum;
      }
    }
    if (thread < HEADS) m.head[t % 2][thread] = head_before;
    block_sync();
    filters_backward(head, m.F, WRITE_X, FILTERS, m.raw, thread, [&](int row, int a) {
      const bool vertical = row >= WRITE_Y;
      const int j = vertical ? row - WRITE_Y : row - WRITE_X;
      const float(*from)[SIDE] = vertical ? m.down : m.across;
      const float* patch = head + 10 + (vertical ? j * n_write : j);
      float sum = 0;
#pragma unroll
      for (int o = 0; o < n_write; ++o) sum += patch[vertical ? o : o * n_write] * from[o][a];
      return over_gamma * sum;
    });
    constexpr int SPARE = 2 * n_write * ROW_LANES < THREADS ? 2 * n_write * ROW_LANES : 0;  // the threads without a row
    for (int i = thread - SPARE; i >= 0 && i < n_write * n_write; i += THREADS - SPARE) {
      float sum = 0;
      for (int x = 0; x < w; ++x) sum += m.across[i / n_write][x] * m.F[WRITE_X + i % n_write][x];
      m.d_head[10 + i] = over_gamma * sum;
    }
    block_sync();
    auto raw_gradient = [&](int begin, int end, int which) {
      float sum = 0;
      for (int row = begin; row < end; ++row) sum += m.raw[row][which];
      return sum;
    };
    if (thread < 5) m.d_head[5 + thread] = raw_gradient(WRITE_X, FILTERS, thread);
    block_sync();
    give_heads(t + 1);

    // Meanwhile, what the read of glimpse t saw: its filters, and those of the write before it (row t).
    make_filters(m.head[t % 2], m.F, thread);
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      canvas[i] = sigmoid(canvas[i]);
      if (const int at = i * THREADS + thread; at < pixels) {
        const int to = at / w * LINE + at % w;
        m.images[1][to] = m.images[0][to] - canvas[i];  // 3
      }
    }
    block_sync();
    for (int i = thread; i < 2 * n_read * (w + h); i += THREADS) {
      float sum = 0;
      if (i < 2 * n_read * w) {
        const int kind = i / (n_read * w), j = i / w % n_read, x = i % w;
        for (int y = 0; y < h; ++y) sum += m.F[READ_Y + j][y] * m.images[kind][y * LINE + x];
        m.seen[kind][j][x] = sum;
      } else {
        const int rest = i - 2 * n_read * w, kind = rest / (n_read * h), j = rest / h % n_read, y = rest % h;
        for (int x = 0; x < w; ++x) sum += m.F[READ_X + j][x] * m.images[kind][y * LINE + x];
        m.seen_down[kind][j][y] = sum;
      }
    }
    const int parity = (p.steps - 1 - t) % 2;
    receive(&m.heads_mail, parity);
    if (thread == 0) expect(&m.heads_mail, HEADS_BYTES);

    d_h_dec += has_unit ? from_heads() : 0.0f;
    lstm_backward(gates_dec, s_dec_before, s_dec, d_h_dec, d_s_dec, m.d_gates_dec[0], &m.dec_mail,
                  p.d_gates_dec + (row + first) * (4 * N));  // 7
    s_dec = s_dec_before;
    receive(&m.dec_mail, parity);
    if (thread == 0) expect(&m.dec_mail, GATES_BYTES);
    {
      float c_z[1][4], c_h[TILES_H][4];
      clear(c_z), clear(c_h);
      const bf16* d_gates = m.d_gates_dec[0] + warp * (4 * N / WARPS);
      multiply(c_z, d_gates, 4 * N + PAD, lane, dec_z);
      multiply(c_h, d_gates, 4 * N + PAD, lane, dec_h);
      store(sums, BACK_SUMS, lane, c_z);
      store(sums + ZU, BACK_SUMS, lane, c_h);
    }
    block_sync();
    d_h_dec = has_unit ? total(image, ZU + unit) : 0.0f;
    if (thread < IMAGES * ZU) {  // 6, and what the loss has of q
      const float d_z = total(z_image, thread % ZU);
      bf16* made = m.made[0] + z_image * 2 * ZU + thread % ZU;
      made[0] = to_bf16(has_latent ? d_z + d_mu : 0.0f);
      made[ZU] = to_bf16(has_latent ? d_z * eps * expf(log_sigma) + d_log_sigma : 0.0f);
    }
    block_sync();
    bf16(*made_q)[2 * ZU] = reinterpret_cast<bf16(*)[2 * ZU]>(m.made);
    give<ZU, 2>(made_q, &m.d_post[0][rank * ZU], 2 * KZ + PAD, &m.post_mail, p.d_post + (row + first) * (2 * KZ) + rank * ZU,
                2 * KZ, KZ, rank, thread);
    receive(&m.post_mail, parity);
    if (thread == 0) expect(&m.post_mail, POST_BYTES);
    {
      float c_h[TILES_H][4];
      clear(c_h);
      multiply(c_h, m.d_post[0] + warp * (2 * KZ / WARPS), 2 * KZ + PAD, lane, post);
      store(sums, BACK_SUMS, lane, c_h);  // 1, 2
    }
    block_sync();
    d_h_enc += has_unit ? total(image, unit) : 0.0f;
    lstm_backward(gates_enc, s_enc_before, s_enc, d_h_enc, d_s_enc, m.d_gates_enc[0], &m.enc_mail,
                  p.d_gates_enc + (row + first) * (4 * N));  // 5
    s_enc = s_enc_before;
    receive(&m.enc_mail, parity);
    if (thread == 0) expect(&m.enc_mail, GATES_BYTES);
    {
      float c_r[R_TILES][4], c_h[2 * TILES_H][4];
      clear(c_r), clear(c_h);
      const bf16* d_gates = m.d_gates_enc[0] + warp * (4 * N / WARPS);
      multiply(c_r, d_gates, 4 * N + PAD, lane, enc_r);
      multiply(c_h, d_gates, 4 * N + PAD, lane, enc_h);
      store(sums, BACK_SUMS, lane, c_r);
      store(sums + R_TILES * 8, BACK_SUMS, lane, c_h);
    }
    block_sync();
    if (has_unit) d_h_dec += total(image, R_TILES * 8 + unit), d_h_enc = total(image, R_TILES * 8 + U + unit);
    if (thread < R) m.d_read[thread] = total(rank, thread);
    block_sync();

    // The read of glimpse t (27), through x_hat (3) to the canvas before it.
    head = m.head[t % 2];
    const float gamma = expf(head[4]);
    filters_backward(head, m.F, READ_X, WRITE_X, m.raw, thread, [&](int row, int a) {
      const bool vertical = row >= READ_Y;
      const int j = vertical ? row - READ_Y : row;
      float sum = 0;
#pragma unroll
      for (int kind = 0; kind < 2; ++kind)
#pragma unroll
        for (int o = 0; o < n_read; ++o)
          sum += m.d_read[(kind * n_read + (vertical ? j : o)) * n_read + (vertical ? o : j)] *
                 (vertical ? m.seen_down : m.seen)[kind][o][a];
      return gamma * sum;
    });
#pragma unroll
    for (int i = 0; i < PIXELS; ++i)
      if (const int at = i * THREADS + thread; at < pixels) {
        float d_x_hat = 0;
        for (int y = 0; y < n_read; ++y) {
          float sum = 0;
          for (int x = 0; x < n_read; ++x) sum += m.d_read[(n_read + y) * n_read + x] * m.F[READ_X + x][at % w];
          d_x_hat += m.F[READ_Y + y][at / w] * sum;
        }
        m.d_canvas[at / w * LINE + at % w] -= gamma * d_x_hat * canvas[i] * (1 - canvas[i]);
      }
    block_sync();
    if (thread < 5) m.d_head[thread] = raw_gradient(READ_X, WRITE_X, thread);
    // d_head is read after two more barriers of the block, or the one below.
  }
  for (int i = 5 + thread; i < HEADS; i += THREADS) m.d_head[i] = 0;  // there is no write before the first read
  block_sync();
  give_heads(0);
  receive(&m.heads_mail, p.steps % 2);
  if (has_unit) {
    p.d_h_enc[at_unit] = d_h_enc, p.d_s_enc[at_unit] = d_s_enc;
    p.d_h_dec[at_unit] = d_h_dec + from_heads(), p.d_s_dec[at_unit] = d_s_dec;
  }
  for (int i = thread; i < pixels; i += THREADS) p.d_canvas[static_cast<size_t>(own) * pixels + i] = m.d_canvas[i / w * LINE + i % w];
}

}  // namespace

// --- Launches: 0, or CUDA's error. `tensors` are the pointers of a pass in the order of its struct ------------------

namespace {

template <class Pass, class Size, class... Sizes>
Pass pass_of(void* const* tensors, Size Pass::*first, Size size, Sizes... sizes) {
  Pass pass;
  const Size all[] = {size, sizes...};
  std::memcpy(&pass, tensors, sizeof(Pass) - (sizeof(all) + 7) / 8 * 8);
  std::memcpy(&(pass.*first), all, sizeof(all));
  return pass;
}

Prepare prepare_of(void* const* tensors) {
  return pass_of(tensors, &Prepare::blocks, (4 * N / 8 * (KE + KZ + N) + THREADS - 1) / THREADS);
}

Forward forward_of(void* const* tensors, int steps, int images, int rows) {
  return pass_of(tensors, &Forward::steps, steps, images, rows);
}

Backward backward_of(void* const* tensors, int steps, int images) {
  return pass_of(tensors, &Backward::steps, steps, images);
}

}  // namespace

#ifdef __CUDACC__
namespace {

struct Launch {  // of some clusters
  cudaLaunchAttribute cluster = {};
  cudaLaunchConfig_t config = {};
  Launch(int clusters, size_t bytes, void* stream) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = RANKS, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(clusters * RANKS), config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = bytes, config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster, config.numAttrs = 1;
  }
};

template <class Pass>
int launched(void (*kernel)(Pass), const Pass& pass, size_t bytes, int device, void* stream) {
  if (const auto error = cudaSetDevice(device)) return error;
  const Launch launch(pass.images / IMAGES, bytes, stream);
  return cudaLaunchKernelEx(&launch.config, kernel, pass);
}

template <class Pass>
int clusters_of(void (*kernel)(Pass), size_t bytes) {
  const auto size = static_cast<int>(bytes);
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size)) return -error;
  if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) return -error;
  const Launch launch(1, bytes, nullptr);
  int clusters = 0;
  if (const auto error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config)) return -error;
  return clusters;
}

}  // namespace

extern "C" int draw_prepare(void* const* tensors, int device, void* stream) {
  if (const auto error = cudaSetDevice(device)) return error;
  const Prepare pass = prepare_of(tensors);
  prepare<<<pass.blocks, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(pass);
  return cudaGetLastError();
}

extern "C" int draw_forward(void* const* tensors, int steps, int images, int rows, int device, void* stream) {
  return launched(forward, forward_of(tensors, steps, images, rows), sizeof(ForwardMemory), device, stream);
}

extern "C" int draw_backward(void* const* tensors, int steps, int images, int device, void* stream) {
  return launched(backward, backward_of(tensors, steps, images), sizeof(BackwardMemory), device, stream);
}

extern "C" const char* draw_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// How many clusters the device runs at once, 0 if it cannot, minus CUDA's error if that is why. To be called first: it
// allows the kernels what they need.
extern "C" int draw_clusters(int device) {
  if (const auto error = cudaSetDevice(device)) return -error;
  const int one = clusters_of(forward, sizeof(ForwardMemory)), other = clusters_of(backward, sizeof(BackwardMemory));
  return one < other ? one : other;
}
#else
extern "C" int draw_prepare(void* const* tensors, int, void*) {
  const Prepare pass = prepare_of(tensors);
  launch(pass.blocks, 1, THREADS, 16, [&] { prepare(pass); });
  return 0;
}

extern "C" int draw_forward(void* const* tensors, int steps, int images, int rows, int, void*) {
  const Forward pass = forward_of(tensors, steps, images, rows);
  launch(images / IMAGES, RANKS, THREADS, sizeof(ForwardMemory), [&] { forward(pass); });
  return 0;
}

extern "C" int draw_backward(void* const* tensors, int steps, int images, int, void*) {
  const Backward pass = backward_of(tensors, steps, images);
  launch(images / IMAGES, RANKS, THREADS, sizeof(BackwardMemory), [&] { backward(pass); });
  return 0;
}
#endif
