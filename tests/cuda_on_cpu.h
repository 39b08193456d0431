// Runs a CUDA kernel on the CPU, so that its arithmetic and its synchronisation can be tested
// without a GPU. The kernel source is compiled as plain C++17 with this header included first,
// by exactly one source file of a library or program.
//
// Every thread of a cluster of thread blocks is a fiber: a function with a stack of its own that
// gives way to another fiber only inside the collective functions below (barriers, shuffles,
// matrix products). All fibers share one thread of the operating system. Which fiber goes on is
// drawn from a random sequence fixed by a seed, so a missing barrier gives wrong results for some
// seeds, reproducibly. Clusters do not depend on each other and run one after the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>
#include <sys/mman.h>

#ifndef __x86_64__
#error "cuda_on_cpu.h switches stacks with x86-64 instructions; port switch_stack to this processor."
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

static struct { unsigned x; } threadIdx, blockIdx;  // of the fiber that is running

static unsigned emulation_seed = 0;  // read when a launch begins
extern "C" void set_emulation_seed(unsigned seed) { emulation_seed = seed; }

struct bf16 { uint16_t bits; };

static inline float to_float(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static inline bf16 to_bf16(float value) {  // to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return {uint16_t(bits >> 16 | 0x40)};  // keep a NaN a NaN
    return {uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

static inline int min(int a, int b) { return a < b ? a : b; }

static inline float fast_exp(float x) { return expf(x); }
static inline float inverse(float x) { return 1 / x; }

namespace emulation {

enum State { running_or_ready, in_warp_operation, in_block_sync, in_cluster_wait, in_receive, finished, states };
enum Operation { shuffle_operation, mma_operation };

// What a lane hands to an operation of its warp, and gets back from it.
struct Slot { uint32_t a[4], b[2]; float c[4]; int lane_mask; };

struct Warp {
    uint32_t ready = ~0u;             // the lanes that can go on, one bit each
    uint32_t waiting_for_cluster = 0, waiting_for_mail = 0;
    int arrived = 0;                  // lanes that have reached the current operation
    Operation operation{};
    int rank = 0;                     // of its block in the cluster
    Slot slots[32];
};

struct Fiber {
    void* stack_pointer = nullptr;
    Warp* warp = nullptr;
    int thread = 0, lane = 0, rank = 0;
    bool arrived = false;             // has arrived at the cluster's barrier and not yet waited
    unsigned phase = 0;               // the barrier's phase when it arrived
    State state = running_or_ready;
};

constexpr size_t guard_bytes = 256;   // after each block's shared memory, to notice overruns
// The odd 17 cache lines keep the fibers' stack tops from all competing for the same cache sets.
constexpr size_t stack_bytes = (64 << 10) + 17 * 64;
constexpr uint64_t stack_mark = 0x5AFE57AC5AFE57AC;

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static std::vector<Warp*> ready_warps;  // all that have a ready lane, but for the current one
static std::vector<int> block_arrived;
static Fiber launcher, *running = nullptr;
static Warp* current_warp = nullptr;
static int cluster, blocks, threads, laggard, cluster_arrived, finished_count;
static unsigned cluster_phase;
static char *stacks = nullptr, *shared = nullptr;
static size_t stack_count = 0, shared_size, shared_stride;
static uint64_t random_state;
static void (*run_body)(void*);
static void* body_argument;

template <class... Args> [[noreturn]] static void fail(const char* format, Args... args) {
    fprintf(stderr, "cuda_on_cpu: cluster %d, block %u, thread %u: ", cluster, blockIdx.x, threadIdx.x);
    fprintf(stderr, format, args...);
    fputc('\n', stderr);
    abort();
}

static inline uint32_t draw() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 32;
}

// Saves the registers that a call must preserve on this stack, and takes up another stack.
__attribute__((naked, noipa, no_stack_protector)) static void switch_stack(void** /*save*/, void* /*load*/) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
}

[[noreturn]] static void report_deadlock() {
    int count[states] = {};
    Fiber* first[states] = {};
    for (Fiber& f : fibers) if (!count[f.state]++) first[f.state] = &f;
    static const char* names[] = {"", "in a warp operation", "in block_sync", "in cluster_wait", "in receive", "finished"};
    fprintf(stderr, "cuda_on_cpu: deadlock in cluster %d, no thread can go on:\n", cluster);
    for (int s = in_warp_operation; s < states; s++)
        if (count[s]) fprintf(stderr, "  %d of %zu threads %s, first block rank %d thread %d\n", count[s],
                              fibers.size(), names[s], first[s]->rank, first[s]->thread);
    abort();
}

// Makes some ready warp current, at random. One block, redrawn now and then, goes on only when no
// other can, so that blocks get as far ahead of each other as the barriers allow.
static void choose_warp() {
    if (current_warp && current_warp->ready) ready_warps.push_back(current_warp);
    current_warp = nullptr;
    size_t n = ready_warps.size();
    if (!n) return;
    if (draw() % 64 == 0) laggard = draw() % blocks;
    size_t i = draw() % n;
    for (size_t tries = 0; tries < n && ready_warps[i]->rank == laggard; tries++) i = (i + 1) % n;
    std::swap(ready_warps[i], ready_warps.back());
    current_warp = ready_warps.back();
    ready_warps.pop_back();
}

// Leaves the running fiber for another: mostly of the same warp, which is what the caches hold.
static void give_way() {
    uint32_t random = draw();
    if (!current_warp || !current_warp->ready || random % 256 == 0) choose_warp();
    Fiber *from = running, *to = &launcher;
    if (current_warp) {
        uint32_t ready = current_warp->ready, start = random >> 27;
        uint32_t turned = ready >> start | ready << (-start & 31);
        uint32_t lane = (__builtin_ctz(turned) + start) & 31;
        current_warp->ready &= ~(1u << lane);
        to = &fibers[(current_warp - warps.data()) * 32 + lane];
        threadIdx.x = to->thread;
        blockIdx.x = cluster * blocks + to->rank;
    } else if (finished_count < int(fibers.size())) {
        report_deadlock();
    }
    running = to;
    if (from != to) switch_stack(&from->stack_pointer, to->stack_pointer);
}

static void wait_in(State state) {
    Fiber* self = running;
    self->state = state;
    give_way();
    self->state = running_or_ready;
}

// Lets lanes of a warp go on; the running fiber, which does so already, is left out.
static inline void wake(Warp& warp, uint32_t lanes) {
    if (&warp == running->warp) lanes &= ~(1u << running->lane);
    if (lanes && !warp.ready && &warp != current_warp) ready_warps.push_back(&warp);
    warp.ready |= lanes;
}

// The last lane of a warp to arrive does the work for all lanes, from slot to slot. A lane touches
// only its own slot outside of that, so no lane can disturb another that is still to be resumed.
static inline void warp_collective(Operation operation, void (*work)(Slot*)) {
    Warp& warp = *running->warp;
    if (warp.arrived && warp.operation != operation) fail("lanes of a warp are in different operations");
    warp.operation = operation;
    if (++warp.arrived < 32) return wait_in(in_warp_operation);
    warp.arrived = 0;
    work(warp.slots);
    wake(warp, ~0u);
}

static void shuffle_slots(Slot* slots) {
    for (int i = 0; i < 32; i++) slots[i].c[1] = slots[(i ^ slots[i].lane_mask) & 31].c[0];
}

// Products are summed in order of k; a GPU sums in another order, so results agree to rounding.
static void multiply_slots(Slot* slots) {
    float a[16][16], b[16][8], c[16][8];
    auto low = [](uint32_t pair) { return to_float({uint16_t(pair)}); };
    auto high = [](uint32_t pair) { return to_float({uint16_t(pair >> 16)}); };
    for (int lane = 0; lane < 32; lane++) {
        const Slot& s = slots[lane];
        int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; i++) {
            float* pair = &a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1)];
            pair[0] = low(s.a[i]), pair[1] = high(s.a[i]);
            c[g + 8 * (i >> 1)][2 * t + (i & 1)] = s.c[i];
        }
        for (int i = 0; i < 2; i++) b[2 * t + 8 * i][g] = low(s.b[i]), b[2 * t + 8 * i + 1][g] = high(s.b[i]);
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int col = 0; col < 8; col++) c[row][col] += a[row][k] * b[k][col];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            slots[lane].c[i] = c[(lane >> 2) + 8 * (i >> 1)][2 * (lane & 3) + (i & 1)];
}

static void fiber_main() {
    run_body(body_argument);
    if (running->arrived) fail("finished between cluster_arrive and cluster_wait");
    finished_count++;
    wait_in(finished);  // never returns
}

static void run_cluster() {
    warps.assign(size_t(blocks) * threads / 32, Warp());
    fibers.assign(size_t(blocks) * threads, Fiber());
    block_arrived.assign(blocks, 0);
    ready_warps.clear();
    current_warp = nullptr;
    cluster_arrived = finished_count = 0;
    memset(shared, 0xFF, blocks * shared_stride);  // reads as NaN until written
    for (size_t i = 0; i < warps.size(); i++) ready_warps.push_back(&warps[i]);
    for (size_t i = 0; i < fibers.size(); i++) {
        Fiber& f = fibers[i];
        f.warp = &warps[i / 32], f.lane = i % 32, f.thread = i % threads, f.rank = f.warp->rank = i / threads;
        // The stack begins as if fiber_main were about to be returned to, from switch_stack.
        char* base = stacks + i * stack_bytes;
        memcpy(base, &stack_mark, 8);
        void** top = (void**)(base + stack_bytes);
        top[-1] = nullptr, top[-2] = (void*)fiber_main;
        f.stack_pointer = top - 8;
    }
    running = &launcher;
    give_way();
    for (size_t i = 0; i < fibers.size(); i++)
        if (memcmp(stacks + i * stack_bytes, &stack_mark, 8)) fail("stack overflow near block rank %d, thread %d", fibers[i].rank, fibers[i].thread);
    for (int rank = 0; rank < blocks; rank++)
        for (size_t i = shared_size; i < shared_stride; i++)
            if (shared[rank * shared_stride + i] != char(0xFF)) fail("block rank %d wrote past its shared memory", rank);
}

}  // namespace emulation

// Runs body() for every thread of every cluster.
template <class F> void launch(int clusters, int cluster_size, int threads, size_t shared_bytes, F body) {
    using namespace emulation;
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    if (threads % 32) fail("the threads of a block must be a multiple of 32, not %d", threads);
    blocks = cluster_size, emulation::threads = threads;
    size_t count = size_t(blocks) * threads;
    if (stack_count < count) {
        if (stacks) munmap(stacks, stack_count * stack_bytes);
        void* memory = mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for %zu stacks", count);
        stacks = (char*)memory, stack_count = count;
    }
    shared_size = shared_bytes, shared_stride = (shared_bytes + 127) / 128 * 128 + guard_bytes;
    std::vector<char> memory(blocks * shared_stride + 128);
    shared = (char*)((uintptr_t(memory.data()) + 127) / 128 * 128);
    random_state = emulation_seed * 0x9E3779B97F4A7C15u;
    laggard = draw() % blocks;
    run_body = [](void* f) { (*(F*)f)(); };
    body_argument = &body;
    for (cluster = 0; cluster < clusters; cluster++) run_cluster();
}

static inline int cluster_rank() { return emulation::running->rank; }

static inline char* shared_memory() { return emulation::shared + cluster_rank() * emulation::shared_stride; }

// The place in block `rank`'s shared memory that `own` is in the calling block's.
template <class T> T* of_rank(T* own, int rank) {
    ptrdiff_t offset = (char*)own - shared_memory();
    if (offset < 0 || offset + sizeof(T) > emulation::shared_size) emulation::fail("of_rank: not in the block's shared memory");
    if (rank < 0 || rank >= emulation::blocks) emulation::fail("of_rank: no block of rank %d", rank);
    return (T*)(emulation::shared + rank * emulation::shared_stride + offset);
}

static inline void block_sync() {
    using namespace emulation;
    int rank = cluster_rank(), per_block = threads / 32;
    if (++block_arrived[rank] < threads) return wait_in(in_block_sync);
    block_arrived[rank] = 0;
    for (int i = 0; i < per_block; i++) wake(warps[rank * per_block + i], ~0u);
}

static inline void cluster_arrive() {
    using namespace emulation;
    if (running->arrived) fail("cluster_arrive twice without cluster_wait");
    running->arrived = true;
    running->phase = cluster_phase;
    if (++cluster_arrived < int(fibers.size())) return;
    cluster_arrived = 0;
    cluster_phase++;
    for (Warp& warp : warps) {
        wake(warp, warp.waiting_for_cluster);
        warp.waiting_for_cluster = 0;
    }
}

static inline void cluster_wait() {
    using namespace emulation;
    if (!running->arrived) fail("cluster_wait without cluster_arrive");
    running->arrived = false;
    if (running->phase != cluster_phase) return;
    running->warp->waiting_for_cluster |= 1u << running->lane;
    wait_in(in_cluster_wait);
}

static inline float shuffle_xor(float value, int lane_mask) {
    using namespace emulation;
    Slot& slot = running->warp->slots[running->lane];
    slot.c[0] = value, slot.lane_mask = lane_mask;
    warp_collective(shuffle_operation, shuffle_slots);
    return slot.c[1];
}

// c += a * b for a 16x16 a and an 8-column b of bf16, in the fragment layout of the instruction
// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.
static inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    using namespace emulation;
    Slot& slot = running->warp->slots[running->lane];
    memcpy(slot.a, a, sizeof a), memcpy(slot.b, b, sizeof b), memcpy(slot.c, c, sizeof c);
    warp_collective(mma_operation, multiply_slots);
    memcpy(c, slot.c, sizeof c);
}

// A block's mail: bytes that other blocks send, complete once as many as expected are here.
struct Mail {
    int32_t missing;             // expected bytes less those that have come
    uint16_t expected, number;   // whether any are expected now; mails completed
};

struct alignas(16) Chunk { uint32_t words[4]; };

static inline void complete(Mail* mail, int rank) {
    using namespace emulation;
    if (!mail->expected || mail->missing) return;
    mail->expected = 0, mail->number++;
    for (int i = 0, n = threads / 32; i < n; i++) {
        Warp& warp = warps[rank * n + i];
        wake(warp, warp.waiting_for_mail);
        warp.waiting_for_mail = 0;
    }
}

static inline void expect(Mail* mail, int bytes, bool initial = false) {
    if (initial) *mail = {};
    if (mail->expected) emulation::fail("expect twice without mail in between");
    mail->expected = 1, mail->missing += bytes;
    complete(mail, cluster_rank());
}

static inline void send(const Chunk& value, void* to, Mail* mail, int rank) {
    *of_rank((Chunk*)to, rank) = value;
    Mail* there = of_rank(mail, rank);
    there->missing -= sizeof value;
    complete(there, rank);
}

static inline void receive(Mail* mail, int parity) {
    while ((mail->number & 1) == parity) {
        emulation::running->warp->waiting_for_mail |= 1u << emulation::running->lane;
        emulation::wait_in(emulation::in_receive);
    }
}
