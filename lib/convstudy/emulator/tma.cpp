// SPDX-License-Identifier: MIT
// Hopper's copies of whole tiles (TMA). Each is done at once, and is known to nobody but those who
// have waited at its barrier: whoever else touches what it writes races with it.
#include <algorithm>
#include <cstring>

#include "checker.h"
#include "lines.h"
#include "numbers.h"
#include "phases.h"

namespace emu {

namespace {

// As tensor_map.py fills it in. All but the strides count elements, the innermost dimension first.
struct Map {
    uint64_t address;
    uint32_t sizes[4];
    uint64_t strides[3];  // in bytes, of all but the innermost
    uint32_t box[3];      // or channels and pixels
    int32_t lower[2], upper[2];
    uint32_t steps[2];
    uint32_t rank, element_bytes, is_im2col, rounds_tf32;
};

// The map behind a kernel's argument, which is to be one of boxes or of pixels.
const Map& read_map(const void* map, bool is_im2col, unsigned rank, uint64_t pc) {
    const Map& found = *static_cast<const Map*>(map);
    if (found.rank != rank)
        misuse(pc, "copies by a map of rank %u at %u coordinates", found.rank, rank);
    if (bool(found.is_im2col) != is_im2col)
        misuse(pc, is_im2col ? "walks over pixels by a map of boxes"
                             : "copies a box by a map of pixels");
    if (found.box[0] * found.element_bytes != LINE)
        misuse(pc, "copies lines of %u bytes; they must be 128",
               found.box[0] * found.element_bytes);
    return found;
}

// One copy: lines of 128 bytes, one after the other.
class Copy {
  public:
    Copy(void* shared, const Map& map, uint32_t lines, const void* barrier, uint64_t pc)
        : map_(map), barrier_(worker->phase_barriers->at(barrier, pc)), pc_(pc),
          to_(uint64_t(shared)), size_(uint32_t(LINE * lines)) {
        if (!within_shared(worker->module, to_, size_))
            abandon(fault_here(OUT_OF_BOUNDS, to_, size_, COPY, pc));
        if (to_ % 1024) abandon(fault_here(MISALIGNED, to_, 1024, COPY, pc));
        if (!barrier_.known_to_tma)
            misuse(pc, "copies to a barrier of which the TMA does not know; "
                       "barrier_init_done() tells it");
    }

    // The next line: 128 bytes from element x on of the line (y, z, u) of the array.
    void line(int64_t x, int64_t y, int64_t z, int64_t u) {
        alignas(CHUNK) char data[LINE] = {};
        const int64_t places[3] = {y, z, u}, size = map_.element_bytes;
        uint64_t from = map_.address;
        bool inside = true;
        for (int i = 0; i < 3; i++) {
            inside &= 0 <= places[i] && places[i] < int64_t(map_.sizes[i + 1]);
            from += uint64_t(places[i]) * map_.strides[i];
        }
        const int64_t first = std::max<int64_t>(x, 0);
        const int64_t end = std::min<int64_t>(x + map_.box[0], map_.sizes[0]);
        if (inside && first < end) {
            const uint64_t bytes = uint64_t(end - first) * size, start = from + first * size;
            memcpy(data + (first - x) * size, reinterpret_cast<const char*>(start), bytes);
            const uint64_t offset = start - map_.address;
            bytes_ += bytes;
            sectors_ += (offset + bytes - 1) / 32 - offset / 32 + 1;
        }
        if (map_.rounds_tf32)
            for (char* word = data; word < data + LINE; word += 4) {
                uint32_t bits;
                memcpy(&bits, word, 4);
                bits = rounded_to_tf32(bits);
                memcpy(word, &bits, 4);
            }
        if (Checker* checker = worker->checker) checker->copy_line(to_, barrier_.number, pc_);
        for (int64_t at = 0; at < LINE; at += CHUNK)
            memcpy(reinterpret_cast<char*>(exchanged(to_ + at)), data + at, CHUNK);
        to_ += LINE;
    }

    void arrive() {
        if (Checker* checker = worker->checker)
            checker->end_lines(barrier_.number, bytes_, sectors_);
        barrier_.complete(size_);
    }

  private:
    const Map& map_;
    Phases& barrier_;
    uint64_t pc_, to_;
    uint32_t size_;
    uint64_t bytes_ = 0, sectors_ = 0;  // read of the array
};

}  // namespace

// ---- what a kernel calls ------------------------------------------------------------------------
#define HERE uint64_t(__builtin_return_address(0))

void copy_box(void* shared, const void* map, const void* barrier, int rank, int x, int y, int z,
              int u) {
    const Map& m = read_map(map, false, unsigned(rank), HERE);
    Copy copy(shared, m, m.box[1] * m.box[2], barrier, HERE);
    for (int i = 0; i < int(m.box[2]); i++)
        for (int j = 0; j < int(m.box[1]); j++) copy.line(x, y + j, z + i, u);
    copy.arrive();
}

void copy_im2col(void* shared, const void* map, const void* barrier, int c, int w, int h, int n,
                 int s, int r) {
    const Map& m = read_map(map, true, 4, HERE);
    Copy copy(shared, m, m.box[1], barrier, HERE);
    for (unsigned i = 0; i < m.box[1]; i++) {
        copy.line(c, w + s, h + r, n);
        w += int(m.steps[0]);
        if (w < int(m.sizes[1]) + m.upper[0]) continue;
        w = m.lower[0];
        h += int(m.steps[1]);
        if (h < int(m.sizes[2]) + m.upper[1]) continue;
        h = m.lower[1];
        n++;
    }
    copy.arrive();
}

}  // namespace emu
