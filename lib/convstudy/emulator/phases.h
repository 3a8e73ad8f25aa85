// SPDX-License-Identifier: MIT
// Hopper's barriers in shared memory: a phase ends once so many threads have arrived, and all bytes
// that were announced have come.
#pragma once
#include <cstdint>
#include <unordered_map>

namespace emu {

struct Phases {
    uint64_t address;
    uint32_t number;    // in the order of initialisation
    uint32_t arrivals;  // that each phase waits for
    uint32_t missing;   // of them, in this phase
    int64_t bytes = 0;  // announced and not yet here
    uint32_t ends = 0;  // phases that have ended
    bool known_to_tma = false;

    // Whether the phase before this one had that parity; none came before the first, whose is 0.
    bool ended(uint32_t parity) const { return (ends & 1) != (parity & 1); }
    void arrive(int64_t announced, uint64_t pc);
    void complete(int64_t come);

  private:
    void end();
};

// Those of a block. Their eight bytes of shared memory only lend them an address.
class PhaseBarriers {
  public:
    void begin_block() { all_.clear(); }
    void init(const void* barrier, uint32_t arrivals, uint64_t pc);
    void init_done();
    Phases& at(const void* barrier, uint64_t pc);  // a fault where it was not initialised

  private:
    std::unordered_map<uint64_t, Phases> all_;
};

}  // namespace emu
