// SPDX-License-Identifier: MIT
// Products of the warpgroups of a block: each warp's part, in the order in which it asked.
#pragma once
#include <cstdint>
#include <vector>

#include "lines.h"
#include "runtime.h"

namespace emu {

// An operand in shared memory, as hopper_cpu.h packs it: lines of 128 bytes, eight by eight.
// `across`: they do not run along depth, and 64 columns are followed by the next `next_columns` on.
struct Operand {
    uint64_t start = 0, next_lines = 0, next_columns = 0;
    bool across = false;

    // One of the `2 size` chunks that hold `size` lines or columns, 32 bytes of depth.
    uint64_t chunk(int i) const {
        return across ? acrossing(i % 16, i / 16 * 8) : along(i / 2, i % 2);
    }

  private:
    uint64_t along(int m, int i) const {
        return exchanged(start + m / 8 * next_lines + m % 8 * LINE + i * CHUNK);
    }
    uint64_t acrossing(int k, int m) const {
        return exchanged(start + m / 64 * next_columns + k / 8 * next_lines + k % 8 * LINE +
                         m % 64 / 8 * CHUNK);
    }
};

struct Product;
// What all lanes say alike.
struct Order {
    void (*multiply)(const Product&);
    Operand a, b;
    bool a_is_in_registers;
    int columns, add;
    uint64_t pc;
};
// What a warp is to do, on what it has in registers.
struct Product : Order {
    uint32_t warp, group;  // of the block; of those that the warp committed
    float* d[WARP];
    const unsigned* a_words[WARP];
};

// They are made when they are waited for: until then their sums are not there, and what they
// multiply must stay.
class Products {
  public:
    void begin_block(uint32_t threads);
    void fence();
    void ask(const Order& order, float* d, const unsigned* a_words, int line);
    void commit();
    void await(uint32_t groups_left, int line);

  private:
    struct Queue {
        std::vector<Product> products;
        uint32_t groups[WARP] = {};  // committed so far, as each lane counts
        bool fenced = false;
    };
    std::vector<Queue> queues_;  // by warp

    Queue& mine();
    static void enqueue(void* const* lanes);
    static void retire(void* const* lanes);
};

}  // namespace emu
