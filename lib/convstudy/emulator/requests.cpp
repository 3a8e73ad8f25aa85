// SPDX-License-Identifier: MIT
#include "requests.h"

#include <algorithm>

namespace emu {

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * 0x9E3779B97F4A7C15ull ^ b;  // splitmix64's finish: keys must not collide
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

LoopNest::LoopNest(const Launch& launch)
    : parents_(launch.loop_parents, launch.loop_parents + launch.loop_count),
      blocks_{{0, NONE, 0}} {
    for (uint32_t i = 0; i < launch.block_count; i++) {
        const TracedBlock& block = launch.traced_blocks[i];
        if (index_.size() <= block.offset) index_.resize(block.offset + 1);
        index_[block.offset] = uint32_t(blocks_.size());
        blocks_.push_back(block);
    }
}

bool LoopNest::holds(int32_t outer, int32_t loop) const {
    while (loop != outer && loop != NONE) loop = parent(loop);
    return loop == outer;
}

void Path::enter_loop(int32_t loop) {
    if (loop == frames_.back().loop || loop == LoopNest::NONE) return;
    enter_loop(nest_->parent(loop));
    frames_.push_back({loop, 0, frames_.back().key, 0});
}

void Path::block(uint64_t offset) {
    const TracedBlock& block = nest_->at(offset);
    if (frames_.empty()) enter_function();
    if (frames_.back().loop != block.loop) {
        while (!nest_->holds(frames_.back().loop, block.loop)) frames_.pop_back();
        enter_loop(block.loop);
    }
    if (block.begins) {
        Frame& loop = frames_.back();
        loop.iteration++;
        loop.key = mix(mix(loop.outer, uint64_t(loop.loop)), loop.iteration);
    }
}

void Path::enter_function() { frames_.push_back({LoopNest::NONE, 0, key(), key()}); }

void Path::leave_function() {
    while (!frames_.empty() && frames_.back().loop != LoopNest::NONE) frames_.pop_back();
    if (!frames_.empty()) frames_.pop_back();
}

uint32_t Requests::find(uint64_t key) {
    // Lanes make mostly the same requests in the same order: try what followed the last time.
    if (!groups_.empty()) {
        const uint32_t next = groups_[recent_].next;
        if (groups_[next].key == key) return recent_ = next;
    }
    auto [found, is_new] = group_of_key_.try_emplace(key, uint32_t(groups_.size()));
    if (is_new) groups_.push_back({key, ~0ull, 0, 0});
    groups_[recent_].next = found->second;
    return recent_ = found->second;
}

void Requests::add(unsigned lane, uint64_t key, uint64_t first_sector, uint64_t last_sector) {
    uint32_t at = find(key);
    while (groups_[at].lanes >> lane & 1) at = find(key = mix(key, 1));  // the lane's next of these
    Group& group = groups_[at];
    group.lanes |= 1u << lane;
    for (uint64_t sector = first_sector; sector <= last_sector; sector++) {
        if (sector == group.last_sector) continue;  // most often the neighbour's
        group.last_sector = sector;
        entries_.push_back({at, sector});
    }
}

uint64_t Requests::sectors() {
    std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
        return a.group != b.group ? a.group < b.group : a.sector < b.sector;
    });
    auto same = [](const Entry& a, const Entry& b) {
        return a.group == b.group && a.sector == b.sector;
    };
    return uint64_t(std::unique(entries_.begin(), entries_.end(), same) - entries_.begin());
}

void Requests::clear() {
    groups_.clear();
    group_of_key_.clear();
    entries_.clear();
    recent_ = 0;
}

}  // namespace emu
