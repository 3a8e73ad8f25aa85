// SPDX-License-Identifier: MIT
// A fiber is a stack and the place where it stopped. One for each CUDA thread of a block: a barrier
// is then a switch to the scheduler (some nanoseconds) where OS threads would need a system call.
#pragma once
#include <cstddef>

#if !defined(EMU_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {

struct Context {
#ifdef EMU_UCONTEXT
    ucontext_t registers;
#else
    void* stack_pointer;
#endif
};

// Makes `context` start `entry` on the stack that ends at `top` when it is first switched to.
// `entry` must never return.
void prepare(Context& context, char* bottom, char* top, void (*entry)());

// Stops here, continues there; returns when something switches back.
void switch_to(Context& from, Context& to);

}  // namespace emu
