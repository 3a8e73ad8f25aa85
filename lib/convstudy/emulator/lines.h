// SPDX-License-Identifier: MIT
// How tiles lie in shared memory that the TMA writes and warpgroups multiply.
#pragma once
#include <cstdint>

namespace emu {

constexpr int64_t LINE = 128, CHUNK = 16;  // bytes

// Chunks of a line lie exchanged: bits 4 to 6 of an address by bits 7 to 9.
inline uint64_t exchanged(uint64_t address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace emu
