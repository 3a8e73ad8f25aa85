// SPDX-License-Identifier: MIT
#include "phases.h"

#include "checker.h"

namespace emu {

void PhaseBarriers::init(const void* barrier, uint32_t arrivals, uint64_t pc) {
    const auto address = uint64_t(barrier);
    if (!within_shared(worker->module, address, 8))
        abandon(fault_here(OUT_OF_BOUNDS, address, 8, WRITE, pc));
    if (address % 8) abandon(fault_here(MISALIGNED, address, 8, WRITE, pc));
    if (Checker* checker = worker->checker) checker->access(address, 8, WRITE, pc);
    all_[address] = {address, arrivals, arrivals};
}

Phases& PhaseBarriers::at(const void* barrier, uint64_t pc) {
    const auto found = all_.find(uint64_t(barrier));
    if (found == all_.end()) abandon(fault_here(UNINITIALISED_SHARED, uint64_t(barrier), 8, WAIT, pc));
    if (Checker* checker = worker->checker) checker->use_barrier(found->first, pc);
    return found->second;
}

// ---- what a kernel calls ------------------------------------------------------------------------
#define HERE uint64_t(__builtin_return_address(0))

void phases_init(const void* barrier, int arrivals) {
    worker->phase_barriers->init(barrier, uint32_t(arrivals), HERE);
}
void phases_arrive(const void* barrier, int bytes) {
    worker->phase_barriers->at(barrier, HERE).arrive(bytes);
}
void phases_wait(const void* barrier, unsigned parity, int line) {
    wait_for_phase(worker->phase_barriers->at(barrier, HERE), parity, line);
}

}  // namespace emu
