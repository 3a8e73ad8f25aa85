// SPDX-License-Identifier: MIT
// Which accesses of a warp's lanes a GPU would make together, and how many sectors they touch.
//
// Lanes run one after the other here. Accesses belong together that lanes make from one place of
// the code in one iteration of each loop around it; lanes that a condition leaves out are missing
// from some, as they are on a GPU.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "launch.h"

namespace emu {

// The loops of a kernel, as loops.py read them from its machine code.
class LoopNest {
  public:
    static constexpr int32_t NONE = -1;

    explicit LoopNest(const Launch& launch);
    // The traced block at this offset of the module: its innermost loop, and whether an iteration
    // of that loop begins here.
    const TracedBlock& at(uint64_t offset) const {
        return blocks_[offset < index_.size() ? index_[offset] : 0];
    }
    int32_t parent(int32_t loop) const { return parents_[uint32_t(loop)]; }
    bool holds(int32_t outer, int32_t loop) const;

  private:
    std::vector<int32_t> parents_;
    std::vector<TracedBlock> blocks_;
    std::vector<uint32_t> index_;  // by offset; blocks_[0] stands for what is not known
};

// Where a thread is in its loops: which iteration of each it is in.
class Path {
  public:
    explicit Path(const LoopNest& nest) : nest_(&nest) {}
    void reset() { frames_.clear(); }
    void block(uint64_t offset);
    void enter_function();
    void leave_function();
    // Equal for two threads that are in the same iterations of the same loops.
    uint64_t key() const { return frames_.empty() ? 0 : frames_.back().key; }

  private:
    struct Frame {
        int32_t loop;  // NONE for a function
        uint64_t iteration, outer, key;
    };
    const LoopNest* nest_;
    std::vector<Frame> frames_;

    void enter_loop(int32_t loop);
};

// The requests from one place of the code, since the warp last waited.
class Requests {
  public:
    bool empty() const { return groups_.empty(); }
    void add(unsigned lane, uint64_t key, uint64_t first_sector, uint64_t last_sector);
    uint64_t count() const { return groups_.size(); }
    uint64_t sectors();
    void clear();

  private:
    struct Group {
        uint64_t key, last_sector;
        uint32_t lanes, next;
    };
    struct Entry {
        uint64_t group, sector;
    };
    std::vector<Group> groups_;
    std::unordered_map<uint64_t, uint32_t> group_of_key_;
    uint32_t recent_ = 0;
    std::vector<Entry> entries_;

    uint32_t find(uint64_t key);
};

}  // namespace emu
