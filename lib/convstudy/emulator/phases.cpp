// SPDX-License-Identifier: MIT
#include "phases.h"

#include "checker.h"

namespace emu {

void Phases::arrive(int64_t announced, uint64_t pc) {
    if (!missing) misuse(pc, "arrives at a barrier at which all %u have arrived", arrivals);
    if (Checker* checker = worker->checker) checker->arrive(number);
    bytes += announced;
    missing--;
    end();
}

void Phases::complete(int64_t come) {
    bytes -= come;
    end();
}

void Phases::end() {
    if (missing || bytes) return;
    missing = arrivals;
    ends++;
    if (Checker* checker = worker->checker) checker->end_phase(number);
}

void PhaseBarriers::init(const void* barrier, uint32_t arrivals, uint64_t pc) {
    const auto address = uint64_t(barrier);
    if (!within_shared(worker->module, address, 8))
        abandon(fault_here(OUT_OF_BOUNDS, address, 8, WRITE, pc));
    if (address % 8) abandon(fault_here(MISALIGNED, address, 8, WRITE, pc));
    if (Checker* checker = worker->checker) checker->use_barrier(address, WRITE, pc);
    const auto number = uint32_t(all_.size());
    if (number == MAX_BARRIERS) misuse(pc, "initialises more than %u barriers", MAX_BARRIERS);
    if (!all_.insert({address, {address, number, arrivals, arrivals}}).second)
        misuse(pc, "initialises a barrier again");
}

void PhaseBarriers::init_done() {
    for (auto& [address, phases] : all_) phases.known_to_tma = true;
}

Phases& PhaseBarriers::at(const void* barrier, uint64_t pc) {
    const auto found = all_.find(uint64_t(barrier));
    if (found == all_.end())
        abandon(fault_here(UNINITIALISED_SHARED, uint64_t(barrier), 8, WAIT, pc));
    if (Checker* checker = worker->checker) checker->use_barrier(found->first, ATOMIC, pc);
    return found->second;
}

// ---- what a kernel calls ------------------------------------------------------------------------
#define HERE uint64_t(__builtin_return_address(0))

void phases_init(const void* barrier, int arrivals) {
    worker->phase_barriers->init(barrier, uint32_t(arrivals), HERE);
}
void phases_init_done() { worker->phase_barriers->init_done(); }
void phases_arrive(const void* barrier, int bytes) {
    worker->phase_barriers->at(barrier, HERE).arrive(bytes, HERE);
}
void phases_wait(const void* barrier, unsigned parity, int line) {
    Phases& phases = worker->phase_barriers->at(barrier, HERE);
    wait_for_phase(phases, parity, line);
    if (Checker* checker = worker->checker) checker->pass(phases.number);
}

}  // namespace emu
