//! The CPL 0 part: PVH entry, descriptor tables, page tables, interrupt stubs.
//!
//! On software KVM every instruction here is emulated at about a microsecond,
//! so tables are laid out by the assembler and whatever may wait is done by the
//! Rust code, which runs at CPL 3. No SSE, no `int3`, no `syscall`.

use core::arch::global_asm;

/// Also the number of per-CPU stacks and task state segments.
pub const MAX_CPUS: usize = 32;
/// Where the real-mode entry of secondary vCPUs is copied to.
pub const TRAMPOLINE: u64 = 0x8000;
pub const KERNEL_CS: u16 = 0x10;
pub const FIRST_TSS: usize = 0x40;
pub const KERNEL_STACK: u64 = 1024;
pub const TSS_SIZE: usize = 104;

// The selectors are those that Linux uses: software KVM runs CPL 3 on the
// host's own user segments (0x33, 0x2b) and need not translate equal ones.
global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

    .section .boot, "ax", @progbits
    .code32
    .globl pvh_start
pvh_start:
    // The first letter of the banner: a sign of life before anything can fail.
    mov edx, 0x3f8
    mov al, 'p'
    out dx, al
    mov al, 0xff
    out 0x21, al
    out 0xa1, al
    lgdt [gdt_pointer]
    xor ebp, ebp
enter_long:
    mov eax, offset pml4
    mov cr3, eax
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3
    or eax, 0x80000003
    mov cr0, eax
    .byte 0xea
    .long start64
    .word 0x10

    // Secondary vCPUs come here from the trampoline.
ap_start32:
    mov ebp, 1
    jmp enter_long

    .code64
start64:
    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    lidt [idt_pointer]
    test ebp, ebp
    jnz 2f
    mov eax, offset boot_tss
    mov word ptr [gdt + 0x42], ax
    shr eax, 16
    mov byte ptr [gdt + 0x44], al
    mov byte ptr [gdt + 0x47], ah
    xor eax, eax
    mov edx, offset boot_stack_top - 8
    jmp 3f
2:  mov eax, 1
    lock xadd dword ptr [cpu_ticket], eax
    mov edx, eax
    shl edx, 13
    add edx, offset ap_stacks - 8
3:  mov ecx, eax
    shl ecx, 4
    add ecx, 0x40
    ltr cx
    mov edi, eax
    mov esi, ebx
    inc eax
    shl eax, 10
    lea rsp, [rax + kernel_stacks]
    push 0x2b
    push rdx
    push 0x202
    push 0x33
    push offset rust_start
    iretq

    // Copied below 1 MiB; everything it refers to is absolute.
    .code16
    .globl trampoline
trampoline:
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16
    .word 0x8000 + trampoline_gdt - trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long ap_start32_flat
    .word 0x08
    .balign 8
trampoline_gdt:
    .word 0x40 + 32 * 16 - 1
    .long gdt
    .globl trampoline_end
trampoline_end:

    .code32
ap_start32_flat:
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov ss, eax
    jmp ap_start32

    .code64
    // Interrupts only count and acknowledge; the program looks at the counters.
    .globl irq_stubs
    .balign 16
irq_stubs:
    .set vec, 32
    .rept 224
    .balign 32
    lock inc qword ptr [irq_counts + vec * 8]
    jmp irq_common
    .set vec, vec + 1
    .endr
    .balign 16
irq_common:
    lock inc qword ptr [irq_total]
    push rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq

    .globl spurious_stub
spurious_stub:
    iretq

    .globl exception_stubs
    .balign 16
exception_stubs:
    .set vec, 0
    .rept 32
    .balign 16
    .if (vec != 8) && ((vec < 10) || (vec > 14)) && (vec != 17) && (vec != 21) && (vec != 29) && (vec != 30)
    push 0
    .endif
    push vec
    jmp exception_common
    .set vec, vec + 1
    .endr

    // A fault ends the program: it is told to report it, on a stack of its own.
exception_common:
    mov rdi, [rsp]
    mov rsi, [rsp + 8]
    mov rdx, [rsp + 16]
    mov rcx, cr2
    mov r8, [rsp + 40]
    push 0x2b
    push offset fault_stack_top - 8
    push 0x202
    push 0x33
    push offset fault_report
    iretq

    // `hlt` at CPL 3 is the way in: it faults on every kind of KVM, while `int`
    // and `syscall` do not arrive on all of them. r8 says what is wanted.
    .globl gp_stub
gp_stub:
    cmp qword ptr [rsp + 16], 0x33
    jne 1f
    push rax
    mov rax, [rsp + 16]
    cmp byte ptr [rax], 0xf4
    pop rax
    jne 1f
    inc qword ptr [rsp + 8]
    add rsp, 8
    cmp r8d, 1
    jb 2f
    je 4f
    cmp r8d, 3
    jb 5f
    je 6f
    lidt [no_idt]
    ud2
    // An emulated AMD processor takes a TSS that is marked busy, as a restore sets
    // it, for none and refuses port I/O: the TSS is loaded anew and the access
    // tried again, once in a while.
1:  cmp qword ptr [rsp + 16], 0x33
    jne 7f
    cmp qword ptr [rsp], 0
    jne 7f
    push rax
    push rbx
    push rcx
    push rdx
    xor ecx, ecx
    str cx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov ebx, ecx
    shr ebx, 1
    mov rdx, rax
    sub rdx, [rbx + tss_loads - 0x20]
    mov [rbx + tss_loads - 0x20], rax
    and byte ptr [rcx + gdt + 5], 0xfd
    ltr cx
    cmp rdx, 10000000
    pop rdx
    pop rcx
    pop rbx
    pop rax
    jb 7f
    add rsp, 8
    iretq
7:  push 13
    jmp exception_common
    // Idle: the comparison is made with interrupts off, and `sti` holds them off
    // until `hlt` is reached, so no wake-up falls between.
2:  cmp [rdi], rsi
    jne 3f
    sti
    hlt
3:  iretq
4:  cpuid
    iretq
5:  rdmsr
    iretq
6:  wrmsr
    iretq

    .section .boot.data, "aw", @progbits
    .balign 4096
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
    .globl pdpt
pdpt:
    .quad page_directories + 0x27
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0xe7
    .set page, page + 1
    .endr
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0
    .quad 0x0000890000002068
    .quad 0
    .fill 62, 8, 0
    .balign 8
gdt_pointer:
    .word 0x40 + 32 * 16 - 1
    .quad gdt
    .balign 8
idt_pointer:
    .word 4095
    .quad idt
    .balign 8
no_idt:
    .word 0
    .quad 0
    .balign 4
cpu_ticket:
    .long 1

    .section .boot.bss, "aw", @nobits
    .balign 4096
    .globl idt
idt:
    .skip 4096
    .globl boot_tss
boot_tss:
    .skip 104 + 8192 + 8
    .balign 16
    .globl ap_tss
ap_tss:
    .skip 32 * 104
    .balign 16
    .globl kernel_stacks
kernel_stacks:
    .skip 32 * 1024
    .balign 16
ap_stacks:
    .skip 32 * 8192
    .skip 16384
fault_stack_top:
    .skip 262144
boot_stack_top:
    .balign 64
    .globl irq_counts
irq_counts:
    .skip 256 * 8
    .globl irq_total
irq_total:
    .skip 8
tss_loads:
    .skip 32 * 8
    "#
);
