// SPDX-License-Identifier: MIT
// A copy reads when it is asked for, and writes when its thread waits for it: what is read too
// early is found, as it may be on a GPU. In between its destination holds all ones, a NaN.
#include "async.h"

#include <algorithm>
#include <cstring>

#include "checker.h"

namespace emu {

AsyncCopies::Queue& AsyncCopies::mine() {
    used_ = true;
    return queues_[worker->current->number];
}

void AsyncCopies::begin_block(uint32_t threads) {
    if (used_) queues_.clear();
    queues_.resize(threads);
    used_ = false;
}

void AsyncCopies::start(void* shared, const void* global, unsigned size, unsigned bytes,
                        uint64_t pc) {
    if (Checker* checker = worker->checker) {
        if (bytes) checker->access(uint64_t(global), bytes, READ, pc);
        checker->begin_copy(uint64_t(shared), size, pc);
    }
    Copy copy{shared, {}, size, mine().groups, pc};
    memcpy(copy.data, global, bytes);
    memset(shared, 0xFF, size);
    mine().copies.push_back(copy);
}

void AsyncCopies::commit() { mine().groups++; }

void AsyncCopies::await(unsigned groups_left) {
    auto& [copies, groups] = mine();
    const auto done = [&, last = groups](const Copy& copy) {
        if (copy.group + groups_left >= last) return false;
        if (Checker* checker = worker->checker)
            checker->end_copy(uint64_t(copy.shared), copy.size, copy.pc);
        memcpy(copy.shared, copy.data, copy.size);
        return true;
    };
    copies.erase(std::remove_if(copies.begin(), copies.end(), done), copies.end());
}

// ---- what a kernel calls ------------------------------------------------------------------------
void copy_async(void* shared, const void* global, unsigned size, unsigned bytes) {
    worker->copies->start(shared, global, size, bytes, uint64_t(__builtin_return_address(0)));
}
void commit_copies() { worker->copies->commit(); }
void await_copies(unsigned groups_left) { worker->copies->await(groups_left); }

}  // namespace emu
