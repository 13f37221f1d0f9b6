use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

/// Bytes of the arena that the system says are resident.
fn truly_resident(store: &Store) -> u64 {
    let first = store.arena.base().as_ptr() as usize / PAGE_SIZE;
    let mut entries = vec![0; store.arena.len() / PAGE_SIZE * 8];
    let map = File::open("/proc/self/pagemap").unwrap();
    map.read_exact_at(&mut entries, first as u64 * 8).unwrap();
    // The top bits of an entry: present, swapped out by the kernel.
    let resident = entries
        .chunks_exact(8)
        .filter(|entry| entry[7] & 0b1100_0000 != 0);
    (resident.count() * PAGE_SIZE) as u64
}

fn check_counts(store: &Store) {
    let (mut all_idle, mut all_used) = (0, 0);
    for (index, shard) in store.shards.iter().enumerate() {
        let shard = lock(shard);
        let (mut idle, mut owned) = (0, 0);
        for (id, block) in store
            .blocks
            .iter()
            .take(store.fresh.load(Relaxed) as usize)
            .enumerate()
        {
            if block.shard() as usize != index || block.list() == POOLED {
                continue;
            }
            let bitmap = &store.bitmaps[id];
            let used = (0..shard.class.objects).filter(|&object| block::is_used(bitmap, object));
            let pages = used
                .clone()
                .fold(0, |pages, object| pages | shard.class.pages_of(object));
            assert_eq!(used.count(), usize::from(block.used()));
            all_used += (usize::from(block.used()) * shard.class.size) as u64;
            assert_eq!(
                pages & !block.resident(),
                0,
                "objects lie on resident pages"
            );
            assert_eq!(
                block.idle() & (pages | !block.resident()),
                0,
                "idle pages hold nothing"
            );
            assert_eq!(block.list(), block.density(shard.class));
            idle += block.idle().count_ones();
            owned += 1;
        }
        assert_eq!((idle, owned), (shard.idle_pages, shard.blocks));
        all_idle += idle;
    }
    assert_eq!(all_idle, store.idle.load(Relaxed));
    assert_eq!(all_used, store.used.load(Relaxed));
}

fn free(store: &Store, handle: Handle) {
    if let Some(excess) = store.free(handle) {
        store.give_back(excess);
    }
}

/// The bytes of a live object of this test.
fn bytes(store: &Store, handle: Handle, len: usize) -> &[u8] {
    // SAFETY: each test frees an object only after its last look at it.
    unsafe { store.bytes(handle, len) }
}

#[test]
fn objects_of_every_size_keep_their_bytes() {
    let store = Store::new(8192, None).unwrap();
    let content = |len: usize| (0..len).map(|i| (i * 7 + len) as u8).collect::<Vec<_>>();
    let handles: Vec<_> = (0..=MAX_PACKED)
        .map(|len| store.put(0, len as u32, &content(len)).unwrap())
        .collect();
    for (len, &handle) in handles.iter().enumerate() {
        assert_eq!(bytes(&store, handle, len), content(len));
    }
    check_counts(&store);
    assert_eq!(store.resident_bytes(), truly_resident(&store));
}

#[test]
fn the_resident_count_is_true_through_random_use() {
    let store = Store::new(4096, None).unwrap();
    let mut live: Vec<(Handle, usize, u8)> = Vec::new();
    let mut seed = 1_u64;
    let mut random = move |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % end
    };
    for step in 0..40_000 {
        let growing = step / 5000 % 2 == 0;
        if live.len() < 4096 && (random(3) > 0) == growing {
            let len = if random(4) == 0 {
                random(64)
            } else {
                random(MAX_PACKED + 1)
            };
            let value = random(256) as u8;
            live.push((
                store.put(step, step as u32, &vec![value; len]).unwrap(),
                len,
                value,
            ));
        } else if !live.is_empty() {
            let (handle, len, value) = live.swap_remove(random(live.len()));
            assert!(bytes(&store, handle, len).iter().all(|&byte| byte == value));
            free(&store, handle);
            assert!(store.idle.load(Relaxed) <= store.keep());
        }
        if step % 5000 == 4999 {
            check_counts(&store);
            assert_eq!(
                store.resident_bytes(),
                truly_resident(&store),
                "step {step}"
            );
        }
    }
    for (handle, ..) in live.drain(..) {
        free(&store, handle);
    }
    let kept = store.resident_bytes();
    assert!(kept <= u64::from(store.keep()) * 4096, "{kept} kept");
    store.trim();
    check_counts(&store);
    assert_eq!((store.resident_bytes(), truly_resident(&store)), (0, 0));
}

#[test]
fn holes_are_filled() {
    for (least, live) in [(1500, 3000), (200, 8000)] {
        let store = Store::new(65_536, None).unwrap();
        let mut seed = 1_u64;
        let mut random = move |end: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % end
        };
        let mut objects: Vec<(Handle, usize)> = Vec::new();
        for step in 0..200_000 {
            if objects.len() >= live {
                let (handle, len) = objects.swap_remove(random(live));
                assert_eq!(bytes(&store, handle, len), vec![len as u8; len]);
                free(&store, handle);
            }
            let len = least + random(least / 2);
            let handle = store.put(0, step, &vec![len as u8; len]).unwrap();
            objects.push((handle, len));
        }
        let stored: usize = objects.iter().map(|(_, len)| len).sum();
        let part = store.resident_bytes() as f64 / stored as f64;
        assert!(
            part < if least > 1000 { 1.1 } else { 1.15 },
            "{part:.3} of what is stored"
        );
        check_counts(&store);
        assert_eq!(store.resident_bytes(), truly_resident(&store));
        // What lies in a larger hole moves to its own class.
        let mut at: HashMap<Handle, usize> = objects.iter().copied().collect();
        store.compact(|owner, old| {
            let Some(&len) = at.get(&old) else {
                return true;
            };
            // SAFETY: freed after, and by nobody else.
            let Ok(copy) = (unsafe { store.duplicate(owner, old, len) }) else {
                return false;
            };
            at.remove(&old);
            at.insert(copy, len);
            free(&store, old);
            true
        });
        check_counts(&store);
        for (&handle, &len) in &at {
            assert_eq!(bytes(&store, handle, len), vec![len as u8; len]);
        }
    }
}

#[test]
fn idle_pages_of_all_shards_go_together() {
    let store = Store::new(65_536, None).unwrap();
    let handles: Vec<_> = (0..20_000)
        .map(|owner| store.put(0, owner, &vec![1; owner as usize % 8 * 400]))
        .map(Result::unwrap)
        .collect();
    for handle in handles {
        let (before, keep) = (store.idle.load(Relaxed), store.keep());
        free(&store, handle);
        let left = store.idle.load(Relaxed);
        let gone = before.saturating_sub(left);
        assert!(
            gone == 0 || gone + 1 >= store.keep() / 2,
            "{gone} pages gone"
        );
        // A block gives back all that it has free.
        let kept = left + BLOCK_PAGES as u32;
        assert!(gone == 0 || kept >= keep / 2, "{left} of {keep} are kept");
    }
    check_counts(&store);
    assert_eq!(store.resident_bytes(), truly_resident(&store));
}

#[test]
fn pages_that_the_system_keeps_are_counted() {
    let store = Store::new(4096, None).unwrap();
    let handles: Vec<_> = (0..4000)
        .map(|owner| store.put(0, owner, &[1; 2000]).unwrap())
        .collect();
    let locked = store.arena.base().as_ptr().wrapping_add(BLOCK_BYTES);
    // SAFETY: a block of the arena: locking it changes no byte.
    assert_eq!(unsafe { libc::mlock(locked.cast(), BLOCK_BYTES) }, 0);
    handles.into_iter().for_each(|handle| free(&store, handle));
    store.trim();
    let one = BLOCK_BYTES as u64;
    assert_eq!(
        (store.resident_bytes(), truly_resident(&store)),
        (one, one),
        "the others go all the same"
    );
}

#[test]
fn empty_blocks_are_cut_anew_for_other_sizes() {
    let store = Store::new(1024, None).unwrap();
    for len in [100, 3000, 500, MAX_PACKED, 1] {
        let handles: Vec<_> = (0..1000)
            .map(|i| store.put(0, i, &vec![1; len]).unwrap())
            .collect();
        handles.into_iter().for_each(|handle| free(&store, handle));
        store.trim();
    }
    // As many as the largest size needed, not the sum.
    assert!(store.fresh.load(Relaxed) <= 1000 / 40 + 1);
    assert_eq!(store.resident_bytes(), 0);
}

#[test]
fn pages_are_stored_whole() {
    let store = Store::new(100, None).unwrap();
    let handles: Vec<_> = (0..100_u8)
        .map(|i| store.put_page(0, &[i; PAGE_SIZE]).unwrap())
        .collect();
    for (i, &handle) in handles.iter().enumerate() {
        // SAFETY: freed below only.
        assert_eq!(unsafe { store.page(handle) }, [i as u8; PAGE_SIZE]);
    }
    handles.into_iter().for_each(|handle| free(&store, handle));
    assert!(store.resident_bytes() <= u64::from(store.keep()) * 4096);
}

#[test]
fn the_limit_is_kept_and_idle_memory_elsewhere_is_given_up_for_it() {
    let limit = 64 * PAGE_SIZE as u64;
    let store = Store::new(1024, Some(limit)).unwrap();
    let fill = |len: usize| {
        let mut handles = Vec::new();
        while let Ok(handle) = store.put(0, 0, &vec![3; len]) {
            handles.push(handle);
            assert!(store.resident_bytes() <= limit);
        }
        handles
    };
    for len in [1000, 2000, 220] {
        let handles = fill(len);
        let stored = handles.len() * len;
        assert!(
            stored > 60 * PAGE_SIZE - len,
            "{stored} bytes of {len} each"
        );
        handles.into_iter().for_each(|handle| free(&store, handle));
        check_counts(&store);
    }
}

#[test]
#[should_panic(expected = "freed twice")]
fn freeing_twice_is_noticed() {
    let store = Store::new(10, None).unwrap();
    let handle = store.put(0, 0, b"once").unwrap();
    free(&store, handle);
    free(&store, handle);
}

#[test]
fn compaction_moves_what_is_left_together() {
    let store = Store::new(8192, None).unwrap();
    let mut handles: HashMap<u32, Handle> = (0..8000)
        .map(|owner| (owner, store.put(0, owner, &[owner as u8; 1000]).unwrap()))
        .collect();
    handles.retain(|owner, handle| {
        let keep = owner % 10 == 0;
        if !keep {
            free(&store, *handle);
        }
        keep
    });
    let before = store.resident_bytes();
    store.compact(|owner, old| {
        if handles.get(&owner) != Some(&old) {
            return true;
        }
        // SAFETY: freed after, and by nobody else.
        let Ok(copy) = (unsafe { store.duplicate(owner, old, 1000) }) else {
            return false;
        };
        handles.insert(owner, copy);
        free(&store, old);
        true
    });
    check_counts(&store);
    assert_eq!(store.resident_bytes(), truly_resident(&store));
    for (&owner, &handle) in &handles {
        assert_eq!(bytes(&store, handle, 1000), [owner as u8; 1000]);
    }
    let after = store.resident_bytes();
    assert!(
        after < 1_100_000 && after * 3 < before,
        "{before} to {after} bytes for 800 objects of 1000"
    );
}

#[test]
fn threads_get_objects_of_their_own() {
    let store = Store::new(200_000, None).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let store = &store;
            scope.spawn(move || {
                let mut live = Vec::new();
                for step in 0..20_000_usize {
                    let len = step * 37 % 700;
                    live.push((
                        store
                            .put(thread, 0, &vec![(step ^ thread) as u8; len])
                            .unwrap(),
                        len,
                        (step ^ thread) as u8,
                    ));
                    if step % 3 == 0 || live.len() > 500 {
                        let (handle, len, value) = live.swap_remove(step * 31 % live.len());
                        assert!(bytes(store, handle, len).iter().all(|&byte| byte == value));
                        free(store, handle);
                    }
                }
                for (handle, len, value) in live {
                    assert!(bytes(store, handle, len).iter().all(|&byte| byte == value));
                    free(store, handle);
                }
            });
        }
    });
    store.trim();
    check_counts(&store);
    assert_eq!((store.resident_bytes(), truly_resident(&store)), (0, 0));
}
