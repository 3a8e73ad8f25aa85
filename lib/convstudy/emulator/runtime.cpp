// SPDX-License-Identifier: MIT
// Runs a launch: blocks one after the other, the threads of a block as fibers, each until it waits
// or ends. A barrier opens when every thread of the block has come to it.
#include "runtime.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "async.h"
#include "checker.h"
#include "phases.h"
#include "wgmma.h"

namespace emu {

// initial-exec: a single pointer, read at every access. Only this library uses the model, so the
// few bytes that the C library keeps for it suffice.
thread_local Worker* worker __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

// ---- stacks -------------------------------------------------------------------------------------
constexpr size_t PAGE = 4096;
constexpr size_t STACK = 256 * 1024;  // reserved; only the pages that are used take memory

// The stacks of one block, kept from launch to launch.
struct Arena {
    char* memory;
    std::vector<Fiber> fibers{MAX_THREADS};

    Arena() {
        memory = static_cast<char*>(mmap(nullptr, MAX_THREADS * (STACK + PAGE),
                                         PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (memory == MAP_FAILED) abort();
        for (unsigned i = 0; i < MAX_THREADS; i++) {
            char* bottom = memory + i * (STACK + PAGE);
            mprotect(bottom, PAGE, PROT_NONE);  // a stack that overflows stops, and harms no other
            // Tops at equal offsets of a page would fall into the same few lines of the L1 cache.
            char* top = bottom + PAGE + STACK - (i % 16) * 256;
            fibers[i].stack = {uint64_t(bottom + PAGE), uint64_t(top)};
        }
    }
};

std::mutex arenas_mutex;
std::vector<std::unique_ptr<Arena>> idle_arenas;

std::unique_ptr<Arena> take_arena() {
    std::lock_guard<std::mutex> lock(arenas_mutex);
    if (idle_arenas.empty()) return std::make_unique<Arena>();
    auto arena = std::move(idle_arenas.back());
    idle_arenas.pop_back();
    return arena;
}
void give_back(std::unique_ptr<Arena> arena) {
    std::lock_guard<std::mutex> lock(arenas_mutex);
    idle_arenas.push_back(std::move(arena));
}

// ---- the module ---------------------------------------------------------------------------------
struct TlsIndex {
    unsigned long module, offset;
};
extern "C" void* __tls_get_addr(TlsIndex*);

struct Search {
    uint64_t inside;
    Module found;
};

int match_module(dl_phdr_info* info, size_t, void* data) {
    auto& search = *static_cast<Search*>(data);
    Range image{~0ull, 0};
    const ElfW(Phdr)* tls = nullptr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        if (part.p_type == PT_LOAD) {
            const uint64_t begin = info->dlpi_addr + part.p_vaddr;
            image.begin = std::min(image.begin, begin);
            image.end = std::max<uint64_t>(image.end, begin + part.p_memsz);
        }
        if (part.p_type == PT_TLS) tls = &part;
    }
    if (search.inside < image.begin || search.inside >= image.end) return 0;
    search.found.image = image;
    if (tls && tls->p_memsz) {
        TlsIndex start{info->dlpi_tls_modid, 0};  // asking for it allocates it on this OS thread
        const auto begin = reinterpret_cast<uint64_t>(__tls_get_addr(&start));
        search.found.shared = {begin, begin + tls->p_memsz};
    }
    return 1;
}

Module find_module(const Launch& launch) {
    Search search{reinterpret_cast<uint64_t>(launch.call), {}};
    dl_iterate_phdr(match_module, &search);
    Module module = search.found;
    if (auto dynamic = reinterpret_cast<uint64_t>(launch.dynamic_shared())) {
        module.room = {dynamic, dynamic + EMU_DYNAMIC_ROOM};
        module.dynamic = {dynamic, dynamic + launch.dynamic_bytes};
    }
    return module;
}

Index as_index(const uint32_t (&size)[3]) { return {size[0], size[1], size[2]}; }

// The place of `number` in a box of this size, x fastest.
Index unflatten(uint32_t number, const uint32_t (&size)[3]) {
    return {number % size[0], number / size[0] % size[1], number / size[0] / size[1]};
}

// ---- waiting ------------------------------------------------------------------------------------
void to_scheduler() { switch_to(worker->current->context, worker->scheduler); }

// To the lane that the scheduler would choose, if that is the next one: half as many switches.
void to_next_lane() {
    Fiber &here = *worker->current, &next = *(worker->current + 1);
    const uint32_t number = here.number + 1;
    if (number % WARP == 0 || number >= worker->threads || next.state != READY)
        return to_scheduler();
    worker->current = &next;
    switch_to(here.context, next.context);
}

void fiber_main() {
    for (;;) {
        worker->launch->call(worker->launch->arguments);
        worker->current->state = EXITED;
        to_scheduler();
    }
}

uint64_t wait_for_block(int line, uint64_t value) {
    Fiber& f = *worker->current;
    f.line = uint32_t(line);
    f.value = value;
    f.state = AT_BARRIER;
    to_scheduler();
    return f.result;
}

uint64_t wait_for_warp(uint32_t mask, int line, uint64_t value, uint32_t source,
                       WarpAction action) {
    Fiber& f = *worker->current;
    f.line = uint32_t(line);
    f.mask = mask | 1u << (f.number % WARP);
    f.value = value;
    f.source = source;
    f.action = action;
    f.state = IN_WARP;
    to_next_lane();
    return f.result;
}

template <class F>
void for_each_lane(uint32_t lanes, F&& visit) {
    for (; lanes; lanes &= lanes - 1) visit(unsigned(__builtin_ctz(lanes)));
}

void meet(Fiber*, uint32_t) {}

void shuffle(Fiber* warp, uint32_t lanes) {
    for_each_lane(lanes, [&](unsigned i) {
        // CUDA leaves undefined what a lane outside the mask gives; here it is all ones, a NaN.
        const uint32_t from = warp[i].source;
        warp[i].result = from < WARP && (lanes >> from & 1) ? warp[from].value : ~0ull;
    });
}

void vote(Fiber* warp, uint32_t lanes) {
    uint32_t ballot = 0;
    for_each_lane(lanes, [&](unsigned i) { ballot |= uint32_t(warp[i].value) << i; });
    for_each_lane(lanes, [&](unsigned i) { warp[i].result = ballot; });
}

struct Together {
    void* operands;
    void (*function)(void* const* of_lanes);
};

void together(Fiber* warp, uint32_t lanes) {
    void* operands[WARP] = {};
    void (*function)(void* const*) = nullptr;
    for_each_lane(lanes, [&](unsigned i) {
        const auto& each = *reinterpret_cast<const Together*>(warp[i].value);
        operands[i] = each.operands;
        function = each.function;
    });
    function(operands);
}

// ---- the scheduler ------------------------------------------------------------------------------
void start_block(Worker& w, uint64_t number) {
    w.block = uint32_t(number);
    const Index block = unflatten(w.block, w.launch->grid);
    // Shared memory starts undefined: all ones, which as a float is a NaN. What is left out is the
    // part of the dynamic array's room that was not asked for.
    const Module& m = w.module;
    const Range parts[] = {{m.shared.begin, m.room.begin ? m.dynamic.end : m.shared.end},
                           {m.room.end, m.room.begin ? m.shared.end : 0}};
    for (const Range& part : parts)
        if (part.begin < part.end)
            memset(reinterpret_cast<void*>(part.begin), 0xFF, part.end - part.begin);
    for (uint32_t i = 0; i < w.threads; i++) {
        w.fibers[i].place.block = block;
        w.fibers[i].state = READY;
    }
    w.copies->begin_block(w.threads);
    w.phase_barriers->begin_block();
    w.products->begin_block(w.threads);
    if (w.checker) w.checker->begin_block();
}

// Runs the warp that starts at `first` until none of its lanes can go on; returns whether any did.
bool run_warp(Worker& w, uint32_t first) {
    Fiber* warp = w.fibers + first;
    const uint32_t size = std::min(WARP, w.threads - first);
    bool any = false;
    for (bool going = true; going;) {
        uint32_t alive = 0, waiting = 0;
        for (uint32_t i = 0; i < size; i++) {
            if (warp[i].state == IN_PHASE && warp[i].phases->ended(warp[i].parity))
                warp[i].state = READY;
            if (warp[i].state == READY) {
                any = true;
                w.current = &warp[i];
                switch_to(w.scheduler, warp[i].context);
                if (w.fault.kind) return true;
            }
            alive |= uint32_t(warp[i].state != EXITED) << i;
            waiting |= uint32_t(warp[i].state == IN_WARP) << i;
        }
        going = false;
        while (waiting) {
            const Fiber& first_waiting = warp[__builtin_ctz(waiting)];
            const uint32_t mask = first_waiting.mask;
            uint32_t come = 0;
            for_each_lane(waiting, [&](unsigned i) {
                come |= uint32_t(warp[i].mask == mask && warp[i].action == first_waiting.action)
                        << i;
            });
            waiting &= ~come;
            if (mask & alive & ~come) continue;  // lanes that have exited are not waited for
            const WarpAction action = warp[__builtin_ctz(come)].action;
            action(warp, come);
            for_each_lane(come, [&](unsigned i) { warp[i].state = READY; });
            // Tensor cores bring lanes together, but say nothing of memory.
            if (w.checker && action != together) w.checker->warp_synchronised(first / WARP, come);
            going = true;
        }
    }
    if (any && w.checker) w.checker->warp_stopped();
    return any;
}

// The fault of a block of which no thread can go on and not all have exited; none if all of them
// wait at one barrier.
Fault examine(const Worker& w) {
    const Fiber *barrier = nullptr, *exited = nullptr, *elsewhere = nullptr, *stuck = nullptr;
    const Fiber* endless = nullptr;
    for (uint32_t i = 0; i < w.threads; i++) {
        const Fiber& f = w.fibers[i];
        if (f.state == IN_PHASE && !endless) endless = &f;
        if (f.state == IN_WARP && !stuck) stuck = &f;
        if (f.state == EXITED && !exited) exited = &f;
        if (f.state != AT_BARRIER) continue;
        if (!barrier) barrier = &f;
        if (f.line != barrier->line && !elsewhere) elsewhere = &f;
    }
    Fault fault{};
    auto side = [&](const Fiber& f) {
        Site site = site_of(w, w.block, f.number);
        site.line = f.state == EXITED ? 0 : f.line;
        site.access = WAIT;
        return site;
    };
    const Fiber* here = endless ? endless : stuck ? stuck : barrier;
    const Fiber* other = endless || stuck ? nullptr : elsewhere ? elsewhere : exited;
    if (endless) {
        fault.shared = w.module.shared;
        fault.address = endless->phases->address;
        fault.size = 8;
    }
    fault.kind = endless     ? ENDLESS_PHASE
                 : stuck     ? DEADLOCK
                 : elsewhere ? DIVERGENT_BARRIER
                 : exited    ? EXITED_BEFORE_BARRIER
                             : NO_FAULT;
    fault.here = side(*here);
    fault.sites = 1;
    if (other) {
        fault.other = side(*other);
        fault.sites = 2;
    }
    return fault;
}

void run_block(Worker& w, uint64_t number) {
    start_block(w, number);
    for (;;) {
        // What one warp does may end a phase for which one before it waits.
        for (bool going = true; going;) {
            going = false;
            for (uint32_t first = 0; first < w.threads; first += WARP) {
                going |= run_warp(w, first);
                if (w.fault.kind) return;
            }
        }
        if (w.checker && w.checker->uninitialised()) {
            w.fault = *w.checker->uninitialised();
            return;
        }
        uint32_t exited = 0;
        for (uint32_t i = 0; i < w.threads; i++) exited += w.fibers[i].state == EXITED;
        if (exited == w.threads) return;
        w.fault = examine(w);
        if (w.fault.kind) return;
        w.barriers++;
        uint64_t votes = 0;
        for (uint32_t i = 0; i < w.threads; i++) votes += w.fibers[i].value;
        for (uint32_t i = 0; i < w.threads; i++) {
            w.fibers[i].result = votes;
            w.fibers[i].state = READY;
        }
        if (w.checker) w.checker->block_synchronised();
    }
}

// Blocks that no worker has begun, and the first fault of any.
struct Progress {
    std::atomic<uint64_t> next{0};
    std::atomic<bool> stopped{false};
    std::mutex mutex;
    Counts counts{};
    Fault fault{};
};

void work(const Launch& launch, Progress& progress) {
    auto arena = take_arena();
    Worker w{};
    w.launch = &launch;
    w.stopped = &progress.stopped;
    w.module = find_module(launch);
    w.fibers = arena->fibers.data();
    w.threads = launch.block[0] * launch.block[1] * launch.block[2];
    for (uint32_t i = 0; i < w.threads; i++) {
        Fiber& f = w.fibers[i];
        f.number = i;
        f.place = {unflatten(i, launch.block), {}, as_index(launch.block), as_index(launch.grid)};
        prepare(f.context, reinterpret_cast<char*>(f.stack.begin),
                reinterpret_cast<char*>(f.stack.end), fiber_main);
    }
    std::unique_ptr<Checker> checker;
    if (launch.checked) checker = std::make_unique<Checker>(w);
    w.checker = checker.get();
    AsyncCopies copies;
    w.copies = &copies;
    PhaseBarriers phase_barriers;
    w.phase_barriers = &phase_barriers;
    Products products;
    w.products = &products;
    worker = &w;
    const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    while (!progress.stopped) {
        const uint64_t block = progress.next++;
        if (block >= blocks) break;
        run_block(w, block);
        if (w.fault.kind) progress.stopped = true;
    }
    worker = nullptr;
    {
        std::lock_guard<std::mutex> lock(progress.mutex);
        if (checker) progress.counts = checker->counts;  // a checked launch has one worker
        progress.counts.barriers += w.barriers;
        if (w.fault.kind && !progress.fault.kind) progress.fault = w.fault;
    }
    give_back(std::move(arena));
}

}  // namespace

Site site_of(const Worker& w, uint32_t block, uint32_t number) {
    const Index b = unflatten(block, w.launch->grid), t = unflatten(number, w.launch->block);
    return {0, 0, WAIT, {b.x, b.y, b.z}, {t.x, t.y, t.z}};
}

bool within_shared(const Module& m, uint64_t address, uint64_t size) {
    const uint64_t end = address + size;
    const bool in_room = address < m.room.end && end > m.room.begin;
    const bool asked_for = address >= m.dynamic.begin && end <= m.dynamic.end;
    return address >= m.shared.begin && end <= m.shared.end && (!in_room || asked_for);
}

Fault fault_here(FaultKind kind, uint64_t address, uint32_t size, AccessKind access, uint64_t pc) {
    Fault f{};
    f.kind = kind;
    f.sites = 1;
    f.here = site_of(*worker, worker->block, worker->current->number);
    f.here.access = access;
    f.here.pc = pc - worker->module.image.begin;
    f.shared = worker->module.shared;
    f.address = address;
    f.size = size;
    return f;
}

void abandon(const Fault& fault) {
    worker->fault = fault;
    to_scheduler();
    __builtin_unreachable();
}
void misuse(uint64_t pc, const char* format, ...) {
    Fault fault = fault_here(MISUSE, 0, 0, WAIT, pc);
    va_list values;
    va_start(values, format);
    vsnprintf(fault.type, sizeof fault.type, format, values);
    va_end(values);
    abandon(fault);
}

// ---- what a kernel calls ------------------------------------------------------------------------
const Place& place() { return worker->current->place; }
unsigned lane() { return worker->current->number % WARP; }

void block_barrier(int line) { wait_for_block(line, 0); }
unsigned block_barrier_count(int line, bool predicate) {
    return unsigned(wait_for_block(line, predicate));
}
void warp_barrier(unsigned mask, int line) { wait_for_warp(mask, line, 0, 0, meet); }
uint64_t warp_shuffle(unsigned mask, uint64_t value, unsigned source, int line) {
    return wait_for_warp(mask, line, value, source, shuffle);
}
unsigned warp_ballot(unsigned mask, bool predicate, int line) {
    return unsigned(wait_for_warp(mask, line, predicate, 0, vote));
}
void warp_together(void* operands, void (*function)(void* const* of_lanes), int line) {
    const Together mine{operands, function};
    wait_for_warp(~0u, line, reinterpret_cast<uint64_t>(&mine), 0, together);
}
void wait_for_phase(const Phases& phases, uint32_t parity, int line) {
    if (phases.ended(parity)) return;
    Fiber& f = *worker->current;
    f.line = uint32_t(line);
    f.phases = &phases;
    f.parity = parity;
    f.state = IN_PHASE;
    to_scheduler();
}
unsigned warp_active() {
    const Fiber* warp = worker->fibers + worker->current->number / WARP * WARP;
    const uint32_t size = std::min(WARP, worker->threads - warp->number);
    unsigned active = 0;
    for (uint32_t i = 0; i < size; i++) active |= unsigned(warp[i].state != EXITED) << i;
    return active;
}
void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
long long clock() { return ++worker->clock; }

void atomic_access(const void* address, unsigned size) {
    if (worker->checker)
        worker->checker->access(uint64_t(address), size, ATOMIC,
                                uint64_t(__builtin_return_address(0)));
}
template <class T>
static T swap(void* address, T expected, T desired) {
    __atomic_compare_exchange_n(static_cast<T*>(address), &expected, desired, false,
                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}
uint32_t compare_and_swap(void* address, uint32_t expected, uint32_t desired) {
    return swap(address, expected, desired);
}
uint64_t compare_and_swap(void* address, uint64_t expected, uint64_t desired) {
    return swap(address, expected, desired);
}

}  // namespace emu

// What Python calls.
extern "C" EMU_API void emu_launch(const emu::Launch* launch, emu::Counts* counts,
                                   emu::Fault* fault) {
    using namespace emu;
    Progress progress;
    std::vector<std::thread> helpers;
    for (uint32_t i = 1; i < launch->workers; i++)
        helpers.emplace_back([&] { work(*launch, progress); });
    work(*launch, progress);
    for (auto& helper : helpers) helper.join();
    *counts = progress.counts;
    *fault = progress.fault;
}
