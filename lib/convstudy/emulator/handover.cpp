// SPDX-License-Identifier: MIT
// Flags in global memory by which a block tells others of its launch what it has left for them.
#include <chrono>
#include <thread>

#include "checker.h"

namespace emu {

namespace {
constexpr std::chrono::seconds PATIENCE{120};
}

#define HERE uint64_t(__builtin_return_address(0))

void publish(unsigned* flag) {
    if (Checker* checker = worker->checker) checker->publish(uint64_t(flag), HERE);
    __atomic_store_n(flag, 1u, __ATOMIC_RELEASE);
}

void await(const unsigned* flag) {
    if (Checker* checker = worker->checker) checker->check_flag(uint64_t(flag), HERE);
    const auto start = std::chrono::steady_clock::now();
    while (!__atomic_load_n(flag, __ATOMIC_ACQUIRE)) {
        // Blocks before this one have ended, or run on another OS thread.
        const bool for_nobody = worker->launch->workers == 1;
        if (for_nobody || *worker->stopped || std::chrono::steady_clock::now() - start > PATIENCE)
            misuse(HERE, "waits for a flag that no block before it sets");
        std::this_thread::yield();
    }
    if (Checker* checker = worker->checker) checker->learn_of(uint64_t(flag));
}

}  // namespace emu
