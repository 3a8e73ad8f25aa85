// SPDX-License-Identifier: MIT
#include "checker.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "lines.h"

namespace emu {

// ---- shadow memory ------------------------------------------------------------------------------
Shadow::Shadow(Range r) : range(r) {
    words_ = static_cast<Word*>(mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (words_ == MAP_FAILED) abort();
}
Shadow::~Shadow() {
    if (words_) munmap(words_, bytes());
}

Checker::Checker(Worker& w)
    : w_(w),
      first_barrier_((w.threads + WARP - 1) / WARP * WARP),
      actors_(first_barrier_ + MAX_BARRIERS),
      known_(w.threads, Knowledge(actors_)),
      all_(actors_),
      fenced_(w.threads),
      known_of_others_(w.threads),
      shared_(w.module.shared),
      nest_(*w.launch),
      paths_(w.threads, Path(nest_)) {
    const Range& shared = w.module.shared;
    written_.resize(shared.end - shared.begin);
    // Arrays that overlap (one passed twice, say) share one shadow.
    std::vector<Range> ranges(w.launch->arrays, w.launch->arrays + w.launch->array_count);
    std::sort(ranges.begin(), ranges.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 0; i < ranges.size();) {
        Range whole = ranges[i];
        while (++i < ranges.size() && ranges[i].begin < whole.end)
            whole.end = std::max(whole.end, ranges[i].end);
        arrays_.emplace_back(whole);
    }
}

// ---- time ---------------------------------------------------------------------------------------
void Checker::begin_block() {
    block_synchronised();
    std::fill(written_.begin(), written_.end(), 0);
    meetings_.clear();
    for (auto& known : known_of_others_) known.clear();
    for (Path& path : paths_) path.reset();
}

// Adds to what `to` knows of the actors from `begin` to `end`.
static void learn(std::vector<uint32_t>& to, const std::vector<uint32_t>& from, uint32_t begin,
                  uint32_t end) {
    for (uint32_t i = begin; i < end; i++) to[i] = std::max(to[i], from[i]);
}

void Checker::block_synchronised() {
    block_time_ = time_++;
    // Of copies, all know now what any of them knew.
    if (meetings_.empty()) return;
    std::fill(all_.begin() + first_barrier_, all_.end(), 0);
    for (const Knowledge& known : known_) learn(all_, known, first_barrier_, actors_);
    for (Knowledge& known : known_) learn(known, all_, first_barrier_, actors_);
}

void Checker::warp_synchronised(uint32_t warp, uint32_t lanes) {
    // What any of them knew, all of them know now; and of each other, all. Without barriers of
    // phases they know of no other warp.
    const uint32_t first = warp * WARP;
    const uint32_t begin = meetings_.empty() ? first : 0;
    const uint32_t end = meetings_.empty() ? first + WARP : actors_;
    std::fill(all_.begin() + begin, all_.begin() + end, 0);
    for (unsigned i = 0; i < WARP; i++)
        if (lanes >> i & 1) learn(all_, known_[first + i], begin, end);
    for (unsigned i = 0; i < WARP; i++)
        if (lanes >> i & 1) all_[first + i] = time_;
    for (unsigned i = 0; i < WARP; i++)
        if (lanes >> i & 1)
            std::copy(all_.begin() + begin, all_.begin() + end, known_[first + i].begin() + begin);
    time_++;
}

Checker::Meeting& Checker::meeting(uint32_t barrier) {
    while (meetings_.size() <= barrier)
        meetings_.push_back({Knowledge(actors_), Knowledge(actors_), 0});
    return meetings_[barrier];
}

void Checker::arrive(uint32_t barrier) {
    const uint32_t me = w_.current->number;
    Knowledge& arrived = meeting(barrier).arrived;
    learn(arrived, known_[me], 0, actors_);
    arrived[me] = time_++;
}

void Checker::end_phase(uint32_t barrier) {
    Meeting& here = meeting(barrier);
    here.passed_on = here.arrived;
}

void Checker::pass(uint32_t barrier) {
    learn(known_[w_.current->number], meeting(barrier).passed_on, 0, actors_);
}

void Checker::check_flag(uint64_t flag, uint64_t pc) {
    if (!array_at(flag, 4)) stop(fault_here(OUT_OF_BOUNDS, flag, 4, ATOMIC, pc));
    if (flag % 4) stop(fault_here(MISALIGNED, flag, 4, ATOMIC, pc));
}

void Checker::publish(uint64_t flag, uint64_t pc) {
    check_flag(flag, pc);
    const uint32_t me = w_.current->number;
    Knowledge known = known_[me];
    for (uint32_t i = 0; i < first_barrier_; i++) known[i] = std::max(known[i], block_time_);
    known[me] = time_++;
    published_[flag] = {w_.block + 1, std::move(known)};
}

void Checker::learn_of(uint64_t flag) {
    const auto found = published_.find(flag);
    if (found == published_.end()) return;  // it was set before the launch
    auto& mine = known_of_others_[w_.current->number][found->second.block];
    mine.resize(actors_);
    learn(mine, found->second.known, 0, actors_);
}

// Whether what `before` tells of happened before what the current thread does now.
bool Checker::ordered(const Touch& before) const {
    const uint32_t me = w_.current->number;
    if (before.block != w_.block + 1) {
        if (before.block == 0) return true;
        const auto found = known_of_others_[me].find(before.block);
        return found != known_of_others_[me].end() && before.time <= found->second[before.actor];
    }
    if (before.actor < first_barrier_ && before.time <= block_time_) return true;
    return me == before.actor || before.time <= known_[me][before.actor];
}

// ---- one access ---------------------------------------------------------------------------------
uint16_t Checker::site(uint64_t pc) {
    auto& cached = cached_[pc >> 1 & 255];
    if (cached.pc == pc) return cached.site;
    auto [found, is_new] = site_of_pc_.try_emplace(pc, uint16_t(pcs_.size()));
    if (is_new) {
        pcs_.push_back(pc);
        requests_.emplace_back();
        stores_.push_back(false);
    }
    cached.pc = pc;
    return cached.site = found->second;
}

void Checker::stop(const Fault& fault) {
    // An index read from memory that nobody wrote leads anywhere: the first fault is the cause.
    abandon(unwritten_.kind && fault.kind != SHARED_RACE ? unwritten_ : fault);
}

bool Checker::private_memory(uint64_t address, uint32_t size) const {
    auto within = [&](const Range& r) { return address >= r.begin && address + size <= r.end; };
    const auto place = uint64_t(&w_.current->place);
    return within(w_.current->stack) || within({place, place + sizeof(Place)}) ||
           within(w_.module.image) || within(w_.launch->argument_block);
}

Shadow* Checker::array_at(uint64_t address, uint32_t size) {
    auto within = [&](const Shadow& s) {
        return address >= s.range.begin && address + size <= s.range.end;
    };
    if (recent_ < arrays_.size() && within(arrays_[recent_])) return &arrays_[recent_];
    for (recent_ = 0; recent_ < arrays_.size(); recent_++)
        if (within(arrays_[recent_])) return &arrays_[recent_];
    return nullptr;
}

void Checker::track(Shadow& shadow, uint64_t address, uint32_t size, AccessKind kind, uint64_t pc) {
    track(shadow, {address, size, kind, site(pc), w_.current->number, &shadow == &shared_});
}

void Checker::track(Shadow& shadow, const Access& access) {
    const uint64_t begin = access.address, end = begin + access.size;
    for (uint64_t word = begin & ~3ull; word < end; word += 4) {
        uint8_t bytes = 0xF;
        if (word < begin) bytes &= uint8_t(0xF << (begin - word));
        if (word + 4 > end) bytes &= uint8_t(0xF >> (word + 4 - end));
        touch(shadow.at(word), bytes, access);
    }
}

void Checker::touch(Word& word, uint8_t bytes, const Access& access) {
    const uint32_t block = w_.block + 1;
    const AccessKind kind = access.kind;
    // Each block has its own shared memory: what an earlier block did there is no concern of this.
    if (access.shared && word.write.block != block) word.write = {};
    if (access.shared && word.reads[0].block != block) word.reads[0] = {};
    if (access.shared && word.reads[1].block != block) word.reads[1] = {};

    auto conflicts = [&](const Touch& t) { return (t.bytes & bytes) && !ordered(t); };
    auto race = [&](const Touch& before, AccessKind what) {
        Fault f = fault_here(access.shared ? SHARED_RACE : GLOBAL_RACE, access.address, access.size,
                             kind, pcs_[access.site]);
        const bool copied = before.actor >= first_barrier_;
        f.sites = 2;
        f.other = site_of(w_, before.block - 1,
                          copied ? meeting(before.actor - first_barrier_).asker : before.actor);
        f.other.pc = pcs_[before.site] - w_.module.image.begin;
        f.other.access = copied ? COPY : what;
        stop(f);
    };
    if (conflicts(word.write) && !(kind == ATOMIC && word.write.atomic))
        race(word.write, word.write.atomic ? ATOMIC : WRITE);
    if (kind != READ)
        for (const Touch& read : word.reads)
            if (conflicts(read)) race(read, READ);

    Touch now{block, time_, access.site, uint16_t(access.actor), bytes, uint16_t(kind == ATOMIC)};
    Touch& last = kind == READ ? word.reads[0] : word.write;
    const bool mine = last.block == block && last.actor == access.actor;
    if (mine && last.time == time_) {  // it has not waited since
        now.bytes |= last.bytes;
        now.atomic &= last.atomic;
    }
    const bool settled = last.block == block && last.time <= block_time_;
    if (kind == READ && !mine && !settled) word.reads[1] = last;
    last = now;
}

// Notes it where nobody has written yet.
void Checker::note_reading(uint64_t shared, uint32_t size, AccessKind kind, uint64_t pc) {
    const bool all_written = !memchr(written_.data() + (shared - w_.module.shared.begin), 0, size);
    if (!all_written && !unwritten_.kind)
        unwritten_ = fault_here(UNINITIALISED_SHARED, shared, size, kind, pc);
}

void Checker::access(uint64_t address, uint32_t size, AccessKind kind, uint64_t pc) {
    const Module& m = w_.module;
    const bool shared = address >= m.shared.begin && address < m.shared.end;
    Shadow* shadow = shared ? &shared_ : array_at(address, size);
    if (!shadow && private_memory(address, size)) return;
    if (!shadow || (shared && !within_shared(m, address, size)))
        stop(fault_here(OUT_OF_BOUNDS, address, size, kind, pc));
    const bool power_of_two = (size & (size - 1)) == 0;
    if (power_of_two && address % size)
        stop(fault_here(MISALIGNED, address, size, kind, pc));

    if (shared) {
        if (kind != WRITE) note_reading(address, size, kind, pc);
        if (kind != READ) memset(written_.data() + (address - m.shared.begin), 1, size);
    }
    track(*shadow, address, size, kind, pc);
    if (kind == ATOMIC)
        counts.atomics++;
    else if (shared)
        count_shared(size, kind);
    else
        count_global(address - shadow->range.begin, size, kind, pc);
}

void Checker::begin_copy(uint64_t shared, uint32_t size, uint64_t pc) {
    access(shared, size, WRITE, pc);
    memset(written_.data() + (shared - w_.module.shared.begin), 0, size);
}

void Checker::end_copy(uint64_t shared, uint32_t size, uint64_t pc) {
    track(shared_, shared, size, WRITE, pc);
    memset(written_.data() + (shared - w_.module.shared.begin), 1, size);
}

void Checker::copy_line(uint64_t shared, uint32_t barrier, uint64_t pc) {
    meeting(barrier).asker = w_.current->number;
    track(shared_, {shared, LINE, COPY, site(pc), first_barrier_ + barrier, true});
    memset(written_.data() + (shared - w_.module.shared.begin), 1, LINE);
    count_shared(LINE, WRITE);
}

void Checker::end_lines(uint32_t barrier, uint64_t bytes, uint64_t sectors) {
    meeting(barrier).arrived[first_barrier_ + barrier] = time_++;
    counts.global_loads++;
    counts.global_load_requests++;
    counts.global_load_bytes += bytes;
    counts.global_load_sectors += sectors;
}

void Checker::fence() { fenced_[w_.current->number] = time_++; }

// What the TMA wrote are whole chunks: the first word of one stands for it.
uint32_t Checker::size_of_operand(uint64_t chunk) {
    const Touch& write = shared_.at(chunk).write;
    const bool by_thread = write.block == w_.block + 1 && write.actor < first_barrier_;
    return by_thread ? CHUNK : sizeof(float);
}

void Checker::begin_operand(uint64_t chunk, uint64_t pc) {
    note_reading(chunk, CHUNK, READ, pc);
    const uint32_t size = size_of_operand(chunk);
    track(shared_, chunk, size, READ, pc);
    for (uint64_t word = chunk; word < chunk + size; word += sizeof(float)) {
        const Touch& write = shared_.at(word).write;
        if (write.actor < first_barrier_ && write.time > fenced_[write.actor])
            misuse(pc, "multiplies what a thread wrote to shared memory, with no shared_fence() "
                       "behind that");
    }
    count_shared(CHUNK, READ);
}

void Checker::end_operand(uint64_t chunk, uint64_t pc) {
    track(shared_, chunk, size_of_operand(chunk), READ, pc);
}

void Checker::use_barrier(uint64_t barrier, AccessKind kind, uint64_t pc) {
    track(shared_, barrier, 8, kind, pc);
}

void Checker::bad_index(const char* array, int64_t index, uint64_t pc) {
    Fault f = fault_here(INDEX_OUT_OF_BOUNDS, 0, 0, READ, pc);
    f.index = index;
    strncpy(f.type, array, sizeof f.type - 1);
    stop(f);
}

// ---- counting -----------------------------------------------------------------------------------
void Checker::count_shared(uint32_t size, AccessKind kind) {
    (kind == READ ? counts.shared_loads : counts.shared_stores)++;
    (kind == READ ? counts.shared_load_bytes : counts.shared_store_bytes) += size;
}

void Checker::count_global(uint64_t offset, uint32_t size, AccessKind kind, uint64_t pc) {
    (kind == READ ? counts.global_loads : counts.global_stores)++;
    (kind == READ ? counts.global_load_bytes : counts.global_store_bytes) += size;
    const uint16_t at = site(pc);
    if (requests_[at].empty()) touched_.push_back(at);
    stores_[at] = kind == WRITE;
    // Sectors are counted from the array's start, as device memory aligns it: where the CPU's
    // memory happens to lie must not show. `recent_` tells arrays apart.
    constexpr uint64_t SECTOR = 32;
    const uint64_t base = uint64_t(recent_) << 48;
    const uint32_t thread = w_.current->number;
    requests_[at].add(thread % WARP, paths_[thread].key(), base + offset / SECTOR,
                      base + (offset + size - 1) / SECTOR);
}

void Checker::warp_stopped() {
    for (uint16_t at : touched_) {
        Requests& r = requests_[at];
        (stores_[at] ? counts.global_store_requests : counts.global_load_requests) += r.count();
        (stores_[at] ? counts.global_store_sectors : counts.global_load_sectors) += r.sectors();
        r.clear();
    }
    touched_.clear();
}

}  // namespace emu

// ---- what the compiler calls --------------------------------------------------------------------
namespace {
emu::Checker* current_checker() { return emu::worker ? emu::worker->checker : nullptr; }

void observe(const void* address, size_t size, emu::AccessKind kind, void* pc) {
    if (auto* checker = current_checker())
        checker->access(uint64_t(address), uint32_t(size), kind, uint64_t(pc));
}
}  // namespace

#define EMU_OBSERVE(name, size, kind) \
    EMU_API void name(void* p) { observe(p, size, emu::kind, __builtin_return_address(0)); }
#define EMU_OBSERVE_SIZE(n)                           \
    EMU_OBSERVE(__tsan_read##n, n, READ)              \
    EMU_OBSERVE(__tsan_write##n, n, WRITE)            \
    EMU_OBSERVE(__tsan_unaligned_read##n, n, READ)    \
    EMU_OBSERVE(__tsan_unaligned_write##n, n, WRITE)

extern "C" {
EMU_OBSERVE_SIZE(1)
EMU_OBSERVE_SIZE(2)
EMU_OBSERVE_SIZE(4)
EMU_OBSERVE_SIZE(8)
EMU_OBSERVE_SIZE(16)
EMU_API void __tsan_read_range(void* p, size_t n) {
    observe(p, n, emu::READ, __builtin_return_address(0));
}
EMU_API void __tsan_write_range(void* p, size_t n) {
    observe(p, n, emu::WRITE, __builtin_return_address(0));
}
EMU_API void __tsan_init() {}
EMU_API void __tsan_func_entry(void*) {
    if (auto* checker = current_checker()) checker->path().enter_function();
}
EMU_API void __tsan_func_exit() {
    if (auto* checker = current_checker()) checker->path().leave_function();
}
// -fsanitize-coverage=trace-pc: a basic block begins.
EMU_API void __sanitizer_cov_trace_pc() {
    if (auto* checker = current_checker()) checker->block(uint64_t(__builtin_return_address(0)));
}

// -fsanitize=bounds: an index that the array's type forbids. The layout is the compiler's.
struct BoundsFailure {
    const char* file;
    uint32_t line, column;
    const struct Type {
        uint16_t kind, info;
        char name[];
    } * array;
};
EMU_API void __ubsan_handle_out_of_bounds(BoundsFailure* failure, uintptr_t index) {
    if (auto* checker = current_checker())
        checker->bad_index(failure->array->name, int64_t(index),
                           uint64_t(__builtin_return_address(0)));
}
}
