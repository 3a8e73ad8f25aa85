// SPDX-License-Identifier: MIT
#include "wgmma.h"

#include <algorithm>
#include <cstring>

#include "checker.h"
#include "numbers.h"

namespace emu {

namespace {

constexpr int GROUP_ROWS = 64, MOST_COLUMNS = 256;

// Lays out `size` lines or columns from `first` on, by depth: element (k, m) is at k * pitch + m.
template <class Word>
void decode(double* to, int pitch, const Operand& from, int first, int size) {
    constexpr int EACH = 4 * Word::NUMBERS;  // numbers of a chunk
    for (int i = 2 * first; i < 2 * (first + size); i++) {
        uint32_t words[4];
        memcpy(words, reinterpret_cast<const void*>(from.chunk(i)), CHUNK);
        for (int j = 0; j < EACH; j++) {
            const int k = from.across ? i % 16 : i % 2 * EACH + j;
            const int m = from.across ? i / 16 * 8 + j : i / 2;
            to[k * pitch + m - first] = Word::number(words[j / Word::NUMBERS], j % Word::NUMBERS);
        }
    }
}

// The rows of one warp.
template <class Word>
void multiply(const Product& p) {
    constexpr int DEPTH = 8 * Word::NUMBERS;
    alignas(64) double a[DEPTH * ROWS], b[DEPTH * MOST_COLUMNS], d[ROWS * MOST_COLUMNS];
    if (p.a_is_in_registers) {
        for (int lane = 0; lane < int(WARP); lane++)
            for (int i = 0; i < 4; i++)
                a[(lane % 4 + i / 2 * 4) * ROWS + lane / 4 + i % 2 * 8] =
                    Word::number(p.a_words[lane][i], 0);
    } else {
        decode<Word>(a, ROWS, p.a, int(p.warp % 4) * ROWS, ROWS);
    }
    decode<Word>(b, p.columns, p.b, 0, p.columns);

    const auto at = [&](int lane, int i) -> double& {
        return d[(lane / 4 + i / 2 % 2 * 8) * p.columns + i / 4 * 8 + lane % 4 * 2 + i % 2];
    };
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < p.columns / 2; i++) at(lane, i) = p.add ? p.d[lane][i] : 0.0f;
    multiply_add<32>(d, a, b, DEPTH, p.columns);
    for (int lane = 0; lane < int(WARP); lane++)
        for (int i = 0; i < p.columns / 2; i++) p.d[lane][i] = towards_zero(at(lane, i));
}

// Lets each thread of a warpgroup have its part of the chunks that all of them multiply.
template <class Visit>
void for_my_chunks(const Order& order, Visit&& visit) {
    constexpr int THREADS = 4 * WARP;
    const int first = int(worker->current->number) % THREADS;
    const auto visit_each = [&](const Operand& operand, int lines) {
        for (int i = first; i < 2 * lines; i += THREADS) visit(operand.chunk(i));
    };
    if (!order.a_is_in_registers) visit_each(order.a, GROUP_ROWS);
    visit_each(order.b, order.columns);
}

void check_bounds(const Operand& operand, int lines, uint64_t pc) {
    for (const int i : {0, 2 * lines - 1}) {
        const uint64_t chunk = operand.chunk(i);
        if (!within_shared(worker->module, chunk, CHUNK))
            abandon(fault_here(OUT_OF_BOUNDS, chunk, CHUNK, READ, pc));
    }
}

// What the lanes of a warp say together.
struct Asked {
    Products* all;
    uint32_t warp;
    const Order* order;
    float* d;
    const unsigned* a_words;
};
struct Awaited {
    Products* all;
    uint32_t warp, groups;  // that are to be done
};

template <class T>
const T& of(void* const* lanes, unsigned lane) {
    return *static_cast<const T*>(lanes[lane]);
}
// Undefined where a lane has exited: nothing is done.
bool all_here(void* const* lanes) {
    return std::all_of(lanes, lanes + WARP, [](void* lane) { return lane != nullptr; });
}

}  // namespace

void Products::begin_block(uint32_t threads) { queues_.assign((threads + WARP - 1) / WARP, {}); }

Products::Queue& Products::mine() { return queues_[worker->current->number / WARP]; }

void Products::fence() { mine().fenced = true; }

void Products::ask(const Order& order, float* d, const unsigned* a_words, int line) {
    if (!mine().fenced)
        misuse(order.pc, "multiplies with no wgmma_fence() since it began, or last waited");
    if (!order.a_is_in_registers) check_bounds(order.a, GROUP_ROWS, order.pc);
    check_bounds(order.b, order.columns, order.pc);
    if (Checker* checker = worker->checker)
        for_my_chunks(order, [&](uint64_t chunk) { checker->begin_operand(chunk, order.pc); });
    Asked asked{this, worker->current->number / WARP, &order, d, a_words};
    warp_together(&asked, enqueue, line);
}

void Products::enqueue(void* const* lanes) {
    if (!all_here(lanes)) return;
    const Asked& first = of<Asked>(lanes, 0);
    Queue& queue = first.all->queues_[first.warp];
    Product product{*first.order, first.warp, queue.groups[0], {}, {}};
    for (unsigned lane = 0; lane < WARP; lane++) {
        const Asked& asked = of<Asked>(lanes, lane);
        product.d[lane] = asked.d;
        product.a_words[lane] = asked.a_words;
    }
    queue.products.push_back(product);
}

void Products::commit() { mine().groups[worker->current->number % WARP]++; }

void Products::await(uint32_t groups_left, int line) {
    Queue& queue = mine();
    const uint32_t committed = queue.groups[worker->current->number % WARP];
    Awaited awaited{this, worker->current->number / WARP,
                    committed - std::min(committed, groups_left)};
    if (Checker* checker = worker->checker)
        for (const Product& product : queue.products)
            if (product.group < awaited.groups)
                for_my_chunks(product,
                              [&](uint64_t chunk) { checker->end_operand(chunk, product.pc); });
    warp_together(&awaited, retire, line);
}

void Products::retire(void* const* lanes) {
    if (!all_here(lanes)) return;
    const Awaited& awaited = of<Awaited>(lanes, 0);
    Queue& queue = awaited.all->queues_[awaited.warp];
    auto next = queue.products.begin();
    for (; next != queue.products.end() && next->group < awaited.groups; ++next)
        next->multiply(*next);
    queue.products.erase(queue.products.begin(), next);
    queue.fenced = false;
}

// ---- what a kernel calls ------------------------------------------------------------------------
#define HERE uint64_t(__builtin_return_address(0))

namespace {

uint64_t shared_begin() { return worker->module.shared.begin & ~1023ull; }

Operand unpack(uint64_t packed, bool across) {
    return {shared_begin() + (packed & 0xffff) * CHUNK, (packed >> 36) * CHUNK,
            (packed >> 16 & 0xfffff) * CHUNK, across};
}

}  // namespace

unsigned shared_offset(const void* shared) {
    const auto address = uint64_t(shared);
    if (!within_shared(worker->module, address, CHUNK))
        abandon(fault_here(OUT_OF_BOUNDS, address, CHUNK, READ, HERE));
    if (address % CHUNK) abandon(fault_here(MISALIGNED, address, CHUNK, READ, HERE));
    return unsigned(address - shared_begin());
}

void warpgroup_tf32(float* d, int columns, const unsigned* words, uint64_t a, uint64_t b, int add,
                    int line) {
    const Operand first = words ? Operand{} : unpack(a, false);
    const Order order{multiply<TF32>, first, unpack(b, false), bool(words), columns, add, HERE};
    worker->products->ask(order, d, words, line);
}
void warpgroup_bf16(float* d, int columns, uint64_t a, int across_a, uint64_t b, int across_b,
                    int add, int line) {
    const Order order{multiply<BF16>, unpack(a, across_a), unpack(b, across_b), false, columns, add,
                      HERE};
    worker->products->ask(order, d, nullptr, line);
}
void shared_fence() {
    if (Checker* checker = worker->checker) checker->fence();
}
void warpgroup_fence() { worker->products->fence(); }
void warpgroup_commit() { worker->products->commit(); }
void warpgroup_wait(int groups_left, int line) {
    worker->products->await(uint32_t(groups_left), line);
}

}  // namespace emu
