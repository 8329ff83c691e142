#include "textflag.h"

// func clockGettime()
//
// What takes the place of __vdso_clock_gettime(clock DI, *timespec SI), by the calling
// convention of C. It is not called here: its code is copied, with the address of the table
// of shifts in place of tableMark.
TEXT ·clockGettime(SB),NOSPLIT|NOFRAME,$0-0
	MOVL	$228, AX // SYS_clock_gettime
	SYSCALL
	TESTL	AX, AX
	JNE	done
	MOVL	DI, DI
	CMPL	DI, $1 // the table has CLOCK_REALTIME and CLOCK_MONOTONIC
	JHI	done
	MOVQ	$0x7461626c65206174, CX // tableMark
	MOVQ	(CX)(DI*8), R8
	MOVQ	(SI), AX
	IMULQ	$1000000000, AX
	ADDQ	8(SI), AX
	ADDQ	R8, AX
	XORL	DX, DX
	MOVL	$1000000000, CX
	DIVQ	CX
	MOVQ	AX, (SI)
	MOVQ	DX, 8(SI)
	XORL	AX, AX
done:
	RET

// func clockGettimeCode() *[codeLen]byte
TEXT ·clockGettimeCode(SB),NOSPLIT,$0-8
	LEAQ	·clockGettime(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
