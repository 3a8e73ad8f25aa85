// SPDX-License-Identifier: MIT
// Asynchronous copies of the threads of a block, each thread's in the order in which it asked.
#pragma once
#include <cstdint>
#include <vector>

namespace emu {

class AsyncCopies {
  public:
    void begin_block(uint32_t threads);
    void start(void* shared, const void* global, unsigned size, unsigned bytes, uint64_t pc);
    void commit();
    void await(unsigned groups_left);

  private:
    struct Copy {
        void* shared;
        uint8_t data[16];
        uint32_t size, group;
        uint64_t pc;
    };
    struct Queue {
        std::vector<Copy> copies;
        uint32_t groups = 0;  // committed so far: the group that is being filled
    };
    std::vector<Queue> queues_;  // by thread
    bool used_ = false;          // by this block

    Queue& mine();
};

}  // namespace emu
