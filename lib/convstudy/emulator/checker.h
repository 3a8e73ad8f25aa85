// SPDX-License-Identifier: MIT
// Watches every access of a launch: counts it, and stops the launch before one that is a fault.
//
// GCC's -fsanitize=thread puts a call before each load and store of the kernel. Its own runtime is
// not linked: those calls arrive here, with the address (checker.cpp, at the end).
#pragma once
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
    uint16_t actor : 11, bytes : 4, atomic : 1;  // see Checker
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

// Who acts is a thread of the block; or, behind the threads, a barrier of phases, for the copies of
// the TMA that it waits for: what these have done is known to those who know of its phase.
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
    // The TMA writes a line for the barrier of this number; and it has written all of a copy, for
    // which it read so much.
    void copy_line(uint64_t shared, uint32_t barrier, uint64_t pc);
    void end_lines(uint32_t barrier, uint64_t bytes, uint64_t sectors);
    // What this thread has written so far, products may read.
    void fence();
    // A warpgroup reads a chunk of 16 bytes at some time in between.
    void begin_operand(uint64_t chunk, uint64_t pc);
    void end_operand(uint64_t chunk, uint64_t pc);
    // A barrier of phases is initialised (a write), or used: by all at once, but not while that.
    void use_barrier(uint64_t barrier, AccessKind kind, uint64_t pc);
    // A thread sets a flag in global memory, waits for one, or has seen that it is set: what was
    // known to who set it is known to this thread.
    void publish(uint64_t flag, uint64_t pc);
    void check_flag(uint64_t flag, uint64_t pc);
    void learn_of(uint64_t flag);
    void bad_index(const char* array, int64_t index, uint64_t pc);

    Path& path() { return paths_[w_.current->number]; }
    void block(uint64_t pc) { path().block(pc - w_.module.image.begin); }

    // The scheduler says so, and time goes on: what came before is ordered before what follows
    void block_synchronised();                             // for all threads of the block,
    void warp_synchronised(uint32_t warp, uint32_t lanes);  // for these lanes.
    // At a barrier of phases, those who arrive are before those who pass, once a phase has ended.
    void arrive(uint32_t barrier);
    void end_phase(uint32_t barrier);
    void pass(uint32_t barrier);

    // A warp cannot go on: all its accesses since it could are grouped into requests.
    void warp_stopped();

    // A read of shared memory that nobody has written yet. Whether it is a race (someone does so
    // before the next barrier) or a plain omission is known only at that barrier.
    const Fault* uninitialised() const { return unwritten_.kind ? &unwritten_ : nullptr; }

  private:
    Worker& w_;
    uint32_t time_ = 1;
    uint32_t block_time_ = 1;  // of the last block barrier
    // Up to which time is what each actor did ordered before what is done by who knows this?
    using Knowledge = std::vector<uint32_t>;
    const uint32_t first_barrier_, actors_;
    std::vector<Knowledge> known_;  // by thread
    Knowledge all_;                 // room for what several know together
    Knowledge fenced_;              // by thread: when it last said so
    struct Meeting {
        Knowledge arrived, passed_on;  // what those know who arrived, and in phases that have ended
        uint32_t asker;                // who asked for a copy last
    };
    std::vector<Meeting> meetings_;  // by barrier of phases; empty where this block has none
    struct Published {
        uint32_t block;  // its number + 1
        Knowledge known;
    };
    std::unordered_map<uint64_t, Published> published_;  // by the flag's address
    // By thread: what it knows of other blocks' actors.
    std::vector<std::unordered_map<uint32_t, Knowledge>> known_of_others_;

    std::vector<Shadow> arrays_;
    size_t recent_ = 0;  // the array of the last access: the next is often there
    Shadow shared_;
    std::vector<uint8_t> written_;  // for each byte of shared memory
    Fault unwritten_{};

    std::unordered_map<uint64_t, uint16_t> site_of_pc_;
    std::vector<uint64_t> pcs_;
    LoopNest nest_;
    std::vector<Path> paths_;         // by thread
    std::vector<Requests> requests_;  // by site, of the current warp
    std::vector<bool> stores_;        // by site
    std::vector<uint16_t> touched_;   // sites with a request
    struct { uint64_t pc = 0; uint16_t site = 0; } cached_[256];

    struct Access {
        uint64_t address;
        uint32_t size;
        AccessKind kind;
        uint16_t site;
        uint32_t actor;
        bool shared;
    };
    uint16_t site(uint64_t pc);
    Meeting& meeting(uint32_t barrier);
    bool ordered(const Touch& before) const;
    void track(Shadow& shadow, uint64_t address, uint32_t size, AccessKind kind, uint64_t pc);
    void track(Shadow& shadow, const Access& access);
    void touch(Word& word, uint8_t bytes, const Access& access);
    uint32_t size_of_operand(uint64_t chunk);
    void note_reading(uint64_t shared, uint32_t size, AccessKind kind, uint64_t pc);
    void count_shared(uint32_t size, AccessKind kind);
    void count_global(uint64_t offset, uint32_t size, AccessKind kind, uint64_t pc);
    Shadow* array_at(uint64_t address, uint32_t size);
    bool private_memory(uint64_t address, uint32_t size) const;
    [[noreturn]] void stop(const Fault& fault);
};

}  // namespace emu
