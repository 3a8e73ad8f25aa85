// SPDX-License-Identifier: MIT
// Switching stacks by hand. The System V and AAPCS64 calling conventions say which registers a
// function must keep: the switch saves those on the old stack and loads them from the new one.
#include "fiber.h"

#include <cstdint>
#include <cstring>

namespace emu {

#if defined(EMU_UCONTEXT)

// Any other processor: correct, about ten times slower (it saves the signal mask each time).
void prepare(Context& context, char* bottom, char* top, void (*entry)()) {
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = bottom;
    context.registers.uc_stack.ss_size = size_t(top - bottom);
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, entry, 0);
}
void switch_to(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

#elif defined(__x86_64__)

extern "C" void emu_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
.text
.p2align 4
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

void prepare(Context& context, char*, char* top, void (*entry)()) {
    // The stack as emu_switch would have left it: six registers, then where to return. A function
    // expects its stack 8 bytes off a multiple of 16, as after a call.
    void** stack = reinterpret_cast<void**>(uintptr_t(top) & ~uintptr_t(63));
    *--stack = nullptr;
    *--stack = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--stack = nullptr;
    context.stack_pointer = stack;
}
void switch_to(Context& from, Context& to) { emu_switch(&from.stack_pointer, to.stack_pointer); }

#elif defined(__aarch64__)

extern "C" void emu_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
.text
.p2align 4
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emu_switch, .-emu_switch
)");

void prepare(Context& context, char*, char* top, void (*entry)()) {
    constexpr int SAVED = 20, LINK = 11;  // 8-byte slots; x30 is where `ret` goes
    void** stack = reinterpret_cast<void**>(uintptr_t(top) & ~uintptr_t(63)) - SAVED;
    memset(stack, 0, SAVED * sizeof(void*));
    stack[LINK] = reinterpret_cast<void*>(entry);
    context.stack_pointer = stack;
}
void switch_to(Context& from, Context& to) { emu_switch(&from.stack_pointer, to.stack_pointer); }

#endif

}  // namespace emu
