// SPDX-License-Identifier: MIT
// What Python hands to the runtime for one launch, and what comes back. kernel.py mirrors it.
#pragma once
#include <cstdint>

namespace emu {

struct Range {
    uint64_t begin, end;
};

// A place in the kernel's code that tells when a thread comes by (loops.py).
struct TracedBlock {
    uint64_t offset;  // in the module
    int32_t loop;     // the innermost around it, -1 for none
    uint32_t begins;  // 1 where an iteration of that loop begins
};

struct Launch {
    void (*call)(void* const* arguments);
    void* (*dynamic_shared)();
    void* const* arguments;
    Range argument_block;  // where `arguments` and the values lie: the kernel may read it
    const Range* arrays;   // the arrays that were passed, one each, in order
    const TracedBlock* traced_blocks;
    const int32_t* loop_parents;
    uint32_t array_count, block_count, loop_count;
    uint32_t checked;
    uint32_t workers;
    uint32_t grid[3], block[3];
    uint32_t dynamic_bytes;
};

struct Counts {
    uint64_t global_loads, global_stores, shared_loads, shared_stores;
    uint64_t global_load_bytes, global_store_bytes, shared_load_bytes, shared_store_bytes;
    uint64_t global_load_requests, global_store_requests;
    uint64_t global_load_sectors, global_store_sectors;
    uint64_t atomics, barriers;
};

enum FaultKind : uint32_t {
    NO_FAULT,
    OUT_OF_BOUNDS,
    INDEX_OUT_OF_BOUNDS,
    MISALIGNED,
    SHARED_RACE,
    UNINITIALISED_SHARED,
    GLOBAL_RACE,
    DIVERGENT_BARRIER,
    EXITED_BEFORE_BARRIER,
    DEADLOCK,
    ENDLESS_PHASE,
    MISUSE,
};

// COPY: what the tensor memory accelerator writes to shared memory.
enum AccessKind : uint32_t { READ, WRITE, ATOMIC, WAIT, COPY };

// One side of a fault. Either `pc` (an offset in the kernel's .so) or `line` says where.
struct Site {
    uint64_t pc;
    uint32_t line, access;
    uint32_t block[3], thread[3];
};

struct Fault {
    uint32_t kind, sites;  // one side, or two
    Site here, other;
    Range shared;          // where shared memory lay
    uint64_t address, size;
    int64_t index;       // of INDEX_OUT_OF_BOUNDS
    char type[128];      // of the array that was indexed; of MISUSE, what is wrong
};

}  // namespace emu
