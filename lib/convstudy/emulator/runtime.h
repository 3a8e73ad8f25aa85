// SPDX-License-Identifier: MIT
// What the scheduler (runtime.cpp) and the checker (checker.cpp) know of each other.
#pragma once
#include <atomic>
#include <cstdint>

#include "device.h"
#include "fiber.h"
#include "launch.h"

namespace emu {

constexpr unsigned WARP = 32;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_BARRIERS = 64;  // of phases, in a block

enum State : uint8_t { READY, AT_BARRIER, IN_WARP, IN_PHASE, EXITED };

struct Fiber;
struct Phases;
// What a warp does together once every lane named in a mask has come: `lanes` are those that came.
using WarpAction = void (*)(Fiber* warp, uint32_t lanes);

struct Fiber {
    Context context;
    Range stack;
    Place place;
    uint32_t number;  // in the block, x fastest; number % 32 is the lane
    State state;
    uint32_t line;           // where it waits
    uint32_t mask;           // IN_WARP: whom it waits for
    WarpAction action;       // and what is done then,
    uint64_t value, result;  // from each lane's value to each lane's result
    uint32_t source;
    const Phases* phases;    // IN_PHASE: of which barrier it waits,
    uint32_t parity;         // and until a phase of this parity has ended
};

// The range of a kernel's shared memory on this OS thread, and the module it belongs to.
struct Module {
    Range image;    // code, constants and __device__ variables
    Range shared;   // static arrays, and room for the dynamic one:
    Range room;     // all that could be asked for,
    Range dynamic;  // and what this launch did ask for
};

// Whether these bytes lie in what a launch has of shared memory.
bool within_shared(const Module& m, uint64_t address, uint64_t size);

class Checker;
class AsyncCopies;
class PhaseBarriers;
class Products;

// One OS thread that runs blocks, one at a time.
struct Worker {
    const Launch* launch;
    Module module;
    Context scheduler;
    Fiber* fibers;
    uint32_t threads;  // of a block
    Fiber* current;
    uint32_t block;    // its number, x fastest
    long long clock;
    uint64_t barriers;
    Fault fault;
    const std::atomic<bool>* stopped;  // whether another worker has found one
    AsyncCopies* copies;
    PhaseBarriers* phase_barriers;
    Products* products;
    Checker* checker;  // null where the launch is not checked
};

// The worker of this OS thread, null outside a launch.
extern thread_local Worker* worker;

// Records a fault of the current thread and leaves the launch; the fiber is never resumed.
[[noreturn]] void abandon(const Fault& fault);

// Hands the operands of every lane of a warp, by lane, to one function; null where one exited.
void warp_together(void* operands, void (*function)(void* const* of_lanes), int line);

// Suspends the current thread until a phase of this parity has ended.
void wait_for_phase(const Phases& phases, uint32_t parity, int line);

// A side of a fault: thread `number` of block `block`.
Site site_of(const Worker& w, uint32_t block, uint32_t number);

// Stops the current thread for what no single address tells; the rest is as for printf.
[[noreturn]] void misuse(uint64_t pc, const char* format, ...);

// A fault of the current thread, at the return address `pc`.
Fault fault_here(FaultKind kind, uint64_t address, uint32_t size, AccessKind access, uint64_t pc);

}  // namespace emu
