// No C library at all: two system calls, registers checked in between.
// build: -nostdlib -static -no-pie
// exit: 5
        .globl _start
_start: mov $0x1111, %rbx
        mov $0x2222, %rbp
        mov $0x3333, %r12
        mov $0x4444, %r15
        mov $1, %eax
        mov $1, %edi
        lea text(%rip), %rsi
        mov $end - text, %edx
        mov $0x5555, %r8
        mov $0x6666, %r9
        mov $0x7777, %r10
        syscall
next:   cmp $end - text, %rax
        jne bad
        lea next(%rip), %rax            # rcx holds the return address
        cmp %rax, %rcx
        jne bad
        test $0x202, %r11               # r11 holds the flags
        jz bad
        cmp $0x1111, %rbx
        jne bad
        cmp $0x2222, %rbp
        jne bad
        cmp $0x3333, %r12
        jne bad
        cmp $0x4444, %r15
        jne bad
        cmp $0x5555, %r8
        jne bad
        cmp $0x6666, %r9
        jne bad
        cmp $0x7777, %r10
        jne bad
        cmpq $1, (%rsp)                 # argc
        jne bad
        mov $5, %edi
        jmp out
bad:    mov $99, %edi
out:    mov $60, %eax
        syscall
        ud2
        .section .rodata
text:   .ascii "no C library\n"
end:
        .section .note.GNU-stack,"",@progbits
