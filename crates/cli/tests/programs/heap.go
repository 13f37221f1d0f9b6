// Maps, slices and goroutines, collected by Go's runtime. Prints checksums. Argument: entries.
package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"sync"
)

type entry struct {
	id   int
	text string
	list []int
}

func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

func churn(part, count int) uint64 {
	blocks := make([][]byte, count)
	for i := range blocks {
		block := make([]byte, 2048)
		for at := range block {
			block[at] = byte(i*part + at/64)
		}
		blocks[i] = block
		if i%5 == 0 {
			blocks[i/2] = make([]byte, 10)
		}
	}
	sum := uint64(0)
	for _, block := range blocks {
		for _, value := range block {
			sum = sum*31 + uint64(value)
		}
	}
	return sum
}

func main() {
	count, _ := strconv.Atoi(os.Args[1])
	entries := make(map[uint64]*entry)
	for i := 0; i < count; i++ {
		entries[mix(uint64(i))] = &entry{i, "value " + strconv.Itoa(i), []int{i, i * 2}}
	}
	sum := uint64(0)
	for round := 0; round < 2; round++ {
		for i := 0; i < count; i++ {
			e := entries[mix(uint64(i))]
			sum = mix(sum + uint64(e.id+len(e.text)+e.list[1]))
		}
	}
	fmt.Println("map", len(entries), sum)

	sums := make([]uint64, 4)
	var all sync.WaitGroup
	for part := range sums {
		all.Add(1)
		go func(part int) {
			defer all.Done()
			sums[part] = churn(part, count/40)
		}(part)
	}
	all.Wait()
	fmt.Println("goroutines", sums)

	texts := make([]string, 0, count)
	for _, e := range entries {
		texts = append(texts, e.text)
	}
	sort.Strings(texts)
	fmt.Println("sorted", texts[0], texts[count-1])

	nils := 0
	for i := 0; i < 100; i++ {
		func() {
			defer func() {
				if recover() != nil {
					nils++
				}
			}()
			var none *entry
			none.id++
		}()
	}
	fmt.Println("recovered", nils)
}
