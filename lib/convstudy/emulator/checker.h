// SPDX-License-Identifier: MIT
// Watches every access of a launch: counts it, and stops the launch before one that is a fault.
//
// GCC's -fsanitize=thread puts a call before each load and store of the kernel. Its own runtime is
// not linked: those calls arrive here, with the address (checker.cpp, at the end).
#pragma once
#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "requests.h"
#include "runtime.h"

namespace emu {

// Who last touched a word of memory. A word never touched is all zero.
struct Touch {
    uint32_t block;  // its number + 1
    uint32_t time;
    uint16_t site;
    uint16_t thread : 10, bytes : 4, atomic : 1;
};
// The last write, and the reads of the last two threads: one of them is not the next writer.
struct Word {
    Touch write, reads[2];
};

// Shadows a range of memory, a Word for each 4 bytes. Pages never touched cost nothing.
class Shadow {
  public:
    Range range;

    explicit Shadow(Range r);
    ~Shadow();
    Shadow(Shadow&& o) noexcept : range(o.range), words_(o.words_) { o.words_ = nullptr; }
    Shadow(const Shadow&) = delete;
    Word& at(uint64_t address) { return words_[(address >> 2) - (range.begin >> 2)]; }

  private:
    size_t bytes() const { return ((range.end >> 2) - (range.begin >> 2) + 2) * sizeof(Word); }
    Word* words_;
};

class Checker {
  public:
    Counts counts{};

    explicit Checker(Worker& w);

    void begin_block();
    void access(uint64_t address, uint32_t size, AccessKind kind, uint64_t pc);
    // An asynchronous copy writes at some time in between: it races with whoever is not kept away
    // from before its beginning to after its end.
    void begin_copy(uint64_t shared, uint32_t size, uint64_t pc);
    void end_copy(uint64_t shared, uint32_t size, uint64_t pc);
    // The TMA writes whole lines of 128 bytes; who may touch them when is a matter of barriers of
    // phases, of which nothing is known here: from then on, races there are not looked for.
    void copy_lines(uint64_t shared, uint32_t size);
    void count_copied(uint64_t bytes, uint64_t sectors);
    // All threads may use a barrier of phases at once, but not while one initialises it.
    void use_barrier(uint64_t barrier, uint64_t pc);
    void bad_index(const char* array, int64_t index, uint64_t pc);

    Path& path() { return paths_[w_.current->number]; }
    void block(uint64_t pc) { path().block(pc - w_.module.image.begin); }

    // The scheduler says so, and time goes on: what came before is ordered before what follows
    void block_synchronised();                             // for all threads of the block,
    void warp_synchronised(uint32_t warp, uint32_t lanes);  // for these lanes.

    // A warp cannot go on: all its accesses since it could are grouped into requests.
    void warp_stopped();

    // A read of shared memory that nobody has written yet. Whether it is a race (someone does so
    // before the next barrier) or a plain omission is known only at that barrier.
    const Fault* uninitialised() const { return unwritten_.kind ? &unwritten_ : nullptr; }

  private:
    Worker& w_;
    uint32_t time_ = 1;
    uint32_t block_time_ = 1;  // of the last block barrier
    // known_[a][b]: up to this time, what thread b of a's warp did is ordered before what a does
    std::vector<std::array<uint32_t, WARP>> known_;

    std::vector<Shadow> arrays_;
    size_t recent_ = 0;  // the array of the last access: the next is often there
    Shadow shared_;
    std::vector<uint8_t> written_;  // for each byte of shared memory
    std::vector<uint8_t> copied_;   // for each 16 bytes of it: whether the TMA wrote there
    Fault unwritten_{};

    std::unordered_map<uint64_t, uint16_t> site_of_pc_;
    std::vector<uint64_t> pcs_;
    LoopNest nest_;
    std::vector<Path> paths_;         // by thread
    std::vector<Requests> requests_;  // by site, of the current warp
    std::vector<bool> stores_;        // by site
    std::vector<uint16_t> touched_;   // sites with a request
    struct { uint64_t pc = 0; uint16_t site = 0; } cached_[256];

    uint16_t site(uint64_t pc);
    bool ordered(const Touch& before) const;
    void track(Shadow& shadow, uint64_t address, uint32_t size, AccessKind kind, uint64_t pc);
    void touch(Word& word, uint8_t bytes, AccessKind kind, uint16_t site, bool shared,
               uint64_t address, uint32_t size);
    void count_shared(uint32_t size, AccessKind kind);
    void count_global(uint64_t offset, uint32_t size, AccessKind kind, uint64_t pc);
    Shadow* array_at(uint64_t address, uint32_t size);
    bool private_memory(uint64_t address, uint32_t size) const;
    [[noreturn]] void stop(const Fault& fault);
};

}  // namespace emu
