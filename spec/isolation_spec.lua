--- Ways out of a sandbox, each one tried from inside, as root of the sandbox. docs/security.md names these
--- tests.

local bough = require "bough"
local lfs = require "lfs"
local arena = require "spec.support.arena"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local try, refused, sh = arena.try, arena.refused, scratch.sh

describe("isolation", function()
  local attack, loader, home, box, info, base
  local secret -- a file of the host
  local UP = ("/.."):rep(16)

  setup(function()
    attack, loader = arena.compile()
    home = scratch.store()
    box = bough.open(home)
    info = box:info()
    base = box.images:import(arena.tree(attack))
    secret = scratch.file "the host's own\n"
  end)

  teardown(function()
    if box then box:close() end
  end)

  -- An image of another tree, made of `arena.tree` and a shell line.
  local function image_with(line)
    return box.images:import(arena.tree(attack, line))
  end

  local function shell(line, options)
    local all = { shell = line, stderr = bough.STDOUT, disposable = true, timeout = 30 }
    for name, value in pairs(options or {}) do all[name] = value end
    return base:run(all).stdout
  end

  local function read_host(path)
    local file = assert(io.open(path, "rb"))
    local text = file:read "a"
    file:close()
    return text
  end

  describe("files of the host", function()
    it("are not found by absolute path", function()
      refused(try(base, { "open", secret, home, "/home", "/boot", "/usr/lib" }), "ENOENT", 5)
    end)

    it("are not found by climbing with ..", function()
      refused(try(base, { "open", UP .. secret, "/proc" .. UP .. secret, "/dev/shm" .. UP .. secret,
        "/proc/self/root" .. UP .. secret, "/proc/self/cwd" .. UP .. secret }), "ENOENT", 5)
    end)

    it("are not found by /proc/*/root, /proc/*/cwd and their kin", function()
      local out = shell(([[for p in /proc/[0-9]* /proc/[0-9]*/task/* /proc/self /proc/thread-self; do
        set -- "$@" $p/root%s $p/cwd%s%s $p/fd/../root%s; done
        /attack open "$@" /proc/1/root/ /proc/1/cwd/]]):format(secret, UP, secret, secret))
      refused(arena.outcomes(out), "ENOENT EACCES", 20)
    end)

    it("are not found through descriptors: there are three, and none is a directory", function()
      local seen = try(base, { "descriptors" })
      assert.same({ ["0"] = "device", ["1"] = "pipe", ["2"] = "pipe", count = "3" }, seen)
    end)

    it("are not found through a leaked descriptor as working directory (CVE-2024-21626)", function()
      for number = 3, 60 do
        raises("not_found", base.run, base,
          { "/attack", "climb", secret, cwd = ("/proc/self/fd/%d"):format(number), disposable = true })
      end
      for _, cwd in ipairs { "/proc/self/cwd", "/proc/self/root", "/proc/self/root" .. UP } do
        local seen = try(base, { "climb", secret }, { cwd = cwd })
        assert.same({ cwd = "/", host = "ENOENT", store = "ENOENT", top = "root" }, seen)
      end
      raises("denied", base.run, base, { "/attack", "climb", secret, cwd = "/proc/1/cwd", disposable = true })
    end)

    it("cannot be executed through a leaked descriptor", function()
      for number = 3, 60 do
        raises("not_found", base.run, base,
          { ("/proc/self/fd/%d%s%s"):format(number, UP, attack), "whoami", disposable = true })
      end
    end)

    it("are not read for user = by an /etc/passwd that is a link into /proc/self/fd", function()
      local passwd = scratch.file "victim:x:0:0::/leaked:/bin/sh\n"
      local s <close> = base:session()
      s:run { shell = "mkdir /etc" }
      for number = 3, 40 do
        s:run { "ln", "-sf", ("/proc/self/fd/%d%s%s"):format(number, UP, passwd), "/etc/passwd",
          check = true }
        raises("not_found", s.run, s, { "env", user = "victim" })
      end
    end)

    it("cannot be opened by handle (open_by_handle_at, as shocker did)", function()
      refused(try(base, { "handle" }), "EPERM", 6)
    end)

    it("stay out of reach of a double chroot", function()
      local seen = try(base, { "chroot", secret })
      assert.same({ chroot = "ok", fchdir = "ok", again = "ok", host = "ENOENT", self = "ok" }, seen)
    end)

    it("are not what stdin and stdout are open on when there is nothing there", function()
      local before = lfs.attributes("/dev/null", "permissions")
      local seen = arena.outcomes(shell "/attack chmod 640 /proc/self/fd/0 /dev/null")
      refused(seen, "EROFS EPERM", 2)
      local r = base:run { shell = "exec 5>&1; /attack chmod 640 /proc/self/fd/5 >&2", stdout = false,
        disposable = true }
      refused(arena.outcomes(r.stderr), "EROFS EPERM", 1)
      assert.equal(before, lfs.attributes("/dev/null", "permissions"))
    end)

    it("given as stdin can be read, not written", function()
      local given = scratch.file "as it was\n"
      local r = base:run {
        shell = "cat; echo more >>/proc/self/fd/0; /attack chmod 777 /proc/self/fd/0; true",
        stdin = bough.file(given), disposable = true, stderr = false,
      }
      assert.match("^as it was\n", r.stdout)
      assert.equal("as it was\n", read_host(given))
      assert.equal("rw-r--r--", lfs.attributes(given, "permissions"))
    end)

    it("given as stdout get what was written and nothing else of it", function()
      local target = scratch.dir() .. "/out"
      base:run { shell = "exec 5>&1; echo said; /attack chmod 4777 /proc/self/fd/5 >&2", stdout = target,
        stderr = false, disposable = true }
      assert.equal("said\n", read_host(target))
      assert.equal("rw-r--r--", lfs.attributes(target, "permissions"))
    end)
  end)

  describe("the helper's program", function()
    local keeper, before

    setup(function()
      keeper = os.getenv "BOUGH_KEEPER"
        or package.searchpath("bough.core", package.cpath):gsub("core%.so$", "bough-keeper")
      before = read_host(keeper)
    end)

    local function unharmed()
      assert.is_true(before == read_host(keeper))
      assert.equal("fine\n", shell "echo fine")
    end

    it("runs from a sealed copy in memory", function()
      assert.equal("sealed memfd", info.helper)
    end)

    it("cannot be opened as /proc/1/exe", function()
      refused(try(base, { "overwrite", "/proc/1/exe" }), "EACCES", 3)
      unharmed()
    end)

    -- The image brings the loader that the kernel starts for the helper's program: code of the attacker in
    -- a process whose /proc/self/exe is the helper.
    local function bring_loader()
      local interpreter = assert(before:match "(/[%w/._-]*ld[%w_.-]*%.so[%w.]*)", "the helper has no loader")
      return ("mkdir -p .%s && cp %s .%s"):format(interpreter:match "^(.*)/", loader, interpreter)
    end

    local function attempt(image, command)
      local r = image:run { command, stderr = bough.STDOUT, disposable = true, timeout = 30 }
      local seen = arena.outcomes(r.stdout)
      assert.equal("ok", seen.path, r.stdout) -- the attack did run
      assert.equal("all", seen.seals)
      seen.path, seen.seals = nil, nil
      refused(seen, "ETXTBSY EPERM EINVAL", 4)
      unharmed()
    end

    it("cannot be overwritten by {\"/proc/self/exe\"} and a loader of the image's (CVE-2019-5736)", function()
      attempt(image_with(bring_loader()), "/proc/self/exe")
    end)

    it("cannot be overwritten by a script whose interpreter is /proc/self/exe", function()
      attempt(image_with(bring_loader() .. "; printf '#!/proc/self/exe\\n' >script; chmod 755 script"),
        "/script")
    end)
  end)

  describe("the kernel", function()
    it("refuses mounts: by mount(2), by the new calls, umount of masks, remounts", function()
      refused(try(base, { "mounts" }), "EPERM", 24)
    end)

    it("refuses modules", function()
      refused(try(base, { "modules" }), "EPERM", 3)
    end)

    it("refuses kexec, reboot, swap, bpf, perf, userfaultfd, io_uring, keys, clocks, ports and"
      .. " more", function()
      refused(try(base, { "kernel" }), "EPERM EACCES", 28)
    end)

    it("refuses new namespaces by unshare, clone, clone3 and setns", function()
      local seen = try(base, { "namespaces" })
      assert.equal("ENOSYS", seen.clone3)
      seen.clone3 = nil
      refused(seen, "EPERM", 28)
      assert.match("Operation not permitted", shell "unshare -U true")
    end)

    it("refuses calls by the numbers of other word sizes", function()
      if sh "uname -m" :match "x86_64" then
        refused(try(base, { "abi" }), "ENOSYS signal-11", 3)
      else
        assert.same({}, try(base, { "abi" })) -- no other numbers that this test knows
      end
    end)

    it("refuses device nodes, wherever", function()
      refused(try(base, { "mknod" }), "EPERM EROFS", 28)
    end)

    it("takes no settings: nothing below /proc and /sys can be written", function()
      assert.same({ done = "ok" }, try(base, { "knobs" }, { timeout = 60 }))
      local before = read_host "/proc/sys/kernel/core_pattern"
      assert.match("Read%-only", shell "echo /pwned >/proc/sys/kernel/core_pattern")
      assert.equal(before, read_host "/proc/sys/kernel/core_pattern")
      assert.equal("masked\n", shell "f=/proc/sysrq-trigger; if [ -c $f -o ! -e $f ]; then echo masked; fi")
    end)

    it("shows nothing in what is masked", function()
      assert.equal("", shell [[for f in kcore kmsg keys key-users timer_list sched_debug kallsyms kpagecount \
        kpageflags slabinfo vmallocinfo interrupts acpi scsi; do
        [ -d /proc/$f ] && ls -A /proc/$f; [ -f /proc/$f ] && cat /proc/$f; done
        ls -A /sys/firmware 2>/dev/null]])
    end)

    it("gives no control group to be had, nor a release_agent (CVE-2022-0492)", function()
      assert.equal("", shell "find / -name release_agent -o -name cgroup.procs 2>/dev/null")
      assert.equal("", shell "ls -A /sys/fs/cgroup 2>/dev/null")
      assert.match("not permitted", shell "unshare -Urm mount -t cgroup -o rdma cgroup /tmp")
      local seen = try(base, { "mounts" })
      assert.equal("EPERM", seen.cgroup)
      assert.equal("EPERM", seen.cgroup2)
    end)
  end)

  describe("the process", function()
    -- linux/capability.h
    local numbers = {}
    local names = [[CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
      LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE
      SYS_RAWIO SYS_CHROOT
      SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
      AUDIT_WRITE AUDIT_CONTROL SETFCAP]]
    local number = 0
    for name in names:gmatch "%S+" do
      numbers["CAP_" .. name] = number
      number = number + 1
    end

    local function status(options)
      local seen = {}
      local text = shell("cat /proc/self/status", options)
      for name, value in text:gmatch "(%w+):%s+(%x+)" do seen[name] = value end
      return seen
    end

    it("has the capabilities that docs/security.md names, and no others", function()
      local documented = 0
      local list = read_host "docs/security.md" :match "\nCapabilities kept: (.-)%.\n"
      for name in assert(list, "docs/security.md lists no capabilities"):gmatch "`(CAP_[%u_]+)`" do
        documented = documented | 1 << assert(numbers[name], name)
      end
      local seen = status()
      for _, set in ipairs { "CapPrm", "CapEff", "CapBnd" } do
        assert.equal(("%016x"):format(documented), seen[set], set)
      end
      assert.equal(("0"):rep(16), seen.CapInh)
      assert.equal(("0"):rep(16), seen.CapAmb)
    end)

    it("has none as another user", function()
      if info.uids == "1" then
        assert.match("uid", tostring(raises("unsupported", base.run, base, { "id", user = "1000:1000" })))
        return
      end
      local seen = status { user = "1000:1000" }
      assert.equal(("0"):rep(16), seen.CapPrm)
      assert.equal(("0"):rep(16), seen.CapEff)
    end)

    it("is under the filter and no_new_privs, and so are its children", function()
      local out = shell [[sh -c 'sh -c "grep -E \"^(Seccomp|NoNewPrivs):\" /proc/self/status"']]
      assert.match("NoNewPrivs:%s+1\n", out)
      assert.match("Seccomp:%s+2\n", out)
    end)

    it("gains nothing from a setuid program", function()
      local s <close> = base:session()
      s:run { shell = "cp /attack /tmp/su && chown 0:0 /tmp/su && chmod 6755 /tmp/su", check = true }
      assert.equal("6755", s:ls("/tmp")[1].mode_string)
      local user = info.uids == "1" and "0" or "1000:1000"
      local uid = user:match "%d+"
      local run = s:run { "/tmp/su", "whoami", user = user }
      assert.same({ uid = uid, euid = uid }, arena.outcomes(run.stdout))
    end)

    it("cannot trace, read or end pid 1, nor name a process of the host", function()
      local own = io.open("/proc/self/stat"):read "n"
      local command = { "outside", tostring(info.keeper_pid), tostring(own) }
      local seen = try(base, command)
      assert.equal("ok", seen["init-survives"]) -- the signal is sent, and ignored
      assert.equal("ok", seen["init-is-there"])
      seen["init-survives"], seen["init-is-there"] = nil, nil
      refused(seen, "EPERM EACCES ESRCH", 18)
      for _, pid in ipairs { tostring(info.keeper_pid), tostring(own) } do
        assert.equal("ESRCH", seen["kill-" .. pid])
        assert.equal("ESRCH", seen["pidfd-" .. pid])
      end
    end)

    it("sees its own processes and nobody else's", function()
      local pids = shell "ls /proc | grep '^[0-9]' | wc -l"
      assert.is_true(tonumber(pids) <= 6, pids) -- init, one that waits to start others, sh, ls, grep, wc
      assert.equal("bough-init", (shell "tr '\\0' ' ' </proc/1/cmdline":gsub("%s+$", "")))
    end)

    it("cannot slow pid 1 down to outlive its time limit", function()
      local started = os.time()
      local seen, r = try(base, { "starve", "40" }, { timeout = 1 })
      refused(seen, "EPERM", 9)
      assert.is_true(r.timed_out)
      assert.is_true(os.time() - started < 15)
    end)

    it("gets nothing of the host's environment", function()
      local seen = arena.outcomes(shell("env"):gsub("=", " "))
      for _, name in ipairs { "PATH", "HOME", "PWD", "SHLVL", "OLDPWD" } do seen[name] = nil end
      assert.same({}, seen)
    end)

    it("does not learn the path of the store", function()
      local out = shell "cat /proc/self/mountinfo /proc/self/cgroup /proc/1/cmdline /proc/self/maps"
      assert.is_nil(out:find(home, 1, true))
      assert.is_nil(out:find(lfs.currentdir(), 1, true))
    end)
  end)

  describe("the caller's terminal", function()
    it("takes no typing: TIOCSTI and TIOCLINUX, with high bits set too (CVE-2017-5226,"
      .. " CVE-2019-10063)", function()
      -- The host program has the terminal and hands it on with INHERIT.
      local script = scratch.file(([[
        local bough = require "bough"
        local box <close> = bough.open(%q)
        local base = box.images:get(%q)
        local r = base:run { "/attack", "caller-tty", stdout = bough.INHERIT, stderr = bough.INHERIT }
        print("exit " .. r.exit_code)
      ]]):format(home, base.uuid))
      local seen = arena.outcomes(sh(("timeout 60 %s pty %s %s"):format(attack, arena.lua(), script)))
      assert.equal("0", seen.exit)
      assert.equal("0", seen.status)
      assert.equal("0", seen.typed)
      seen.exit, seen.status, seen.typed = nil, nil, nil
      assert.equal("ENXIO", seen.tty)
      seen.tty = nil
      refused(seen, "EPERM", 18)
      -- That it would have been seen: the same outside of a sandbox.
      local control = arena.outcomes(sh(("timeout 60 %s pty %s caller-tty"):format(attack, attack)))
      assert.equal(control["tty-sti-0"] == "ok", tonumber(control.typed) > 0)
    end)

    it("is no way in by a terminal of its own either", function()
      local seen = try(base, { "own-tty" })
      assert.equal("ok", seen.ctty)
      seen.ptmx, seen.ctty = nil, nil
      refused(seen, "EPERM", 6)
    end)
  end)

  describe("the network", function()
    local pipe, port, pid, name

    before_each(function()
      name = "bough-spec-" .. io.open("/proc/self/stat"):read "n"
      pipe = io.popen(("exec %s listen %s"):format(attack, name))
      port, pid = pipe:read("n", "n")
      assert.is_number(pid)
    end)

    after_each(function()
      os.execute("kill " .. pid)
      pipe:close()
    end)

    it("has neither the host's loopback nor its abstract sockets in it with none", function()
      local seen = try(base, { "connect", name, tostring(port) })
      assert.same({ socket = "ok", abstract = "ECONNREFUSED", tcp = "ECONNREFUSED", far = "ENETUNREACH" },
        seen)
    end)

    it("is the host's with host, abstract sockets included", function()
      local seen = try(base, { "connect", name, tostring(port) }, { network = "host" })
      assert.equal("ok", seen.tcp)
      assert.equal("ok", seen.abstract)
    end)

    it("has no raw, packet or vsock sockets, with host neither", function()
      for _, network in ipairs { "none", "host" } do
        local seen = try(base, { "sockets" }, { network = network })
        for _, kind in ipairs { "unix", "pair", "tcp", "udp", "netlink" } do
          assert.equal("ok", seen[kind], kind)
          seen[kind] = nil
        end
        seen.tcp6 = nil -- a kernel may have none
        refused(seen, "EPERM", 8)
      end
    end)

    it("cannot be changed: no interfaces, no settings, with host neither", function()
      for _, network in ipairs { "none", "host" } do
        local out = shell([[ip link add d0 type dummy; ip addr add 10.9.9.9/32 dev lo
          echo 1 >/proc/sys/net/ipv4/ip_forward]], { network = network })
        assert.match("Operation not permitted.*Operation not permitted.*Read%-only", out)
      end
    end)
  end)

  describe("images", function()
    -- What a hostile image and the host each have at the path of the other.
    local victim

    before_each(function() victim = scratch.file "as it was\n" end)

    it("whose /proc, /dev or /sys is a link are refused, and nothing is mounted elsewhere"
      .. " (CVE-2019-19921)", function()
      for _, name in ipairs { "proc", "dev", "sys" } do
        for _, target in ipairs { "/tmp", "tmp", "/proc/self/fd/3", ".." .. UP .. secret:match "^(.*)/" } do
          local image = image_with(("ln -s %s %s"):format(target, name))
          local problem = raises("unsupported", image.run, image, { "/bin/true" })
          assert.match("/" .. name, tostring(problem), 1, true)
        end
      end
    end)

    it("whose /etc/hosts, hostname and resolv.conf are links lead no write out", function()
      local each = "for f in hosts hostname resolv.conf; do %s; done"
      local image = image_with("mkdir etc; " .. each:format("ln -s " .. victim .. " etc/$f"))
      local r = image:run(each:format "cat /etc/$f; echo bad >/etc/$f")
      assert.not_match("as it was", r.stdout)
      assert.equal("as it was\n", read_host(victim))
    end)

    it("whose /etc is a link out lead no write out", function()
      local outside = victim:match "^(.*)/"
      for _, target in ipairs { outside, "../../../../../../../.." .. outside } do
        local image = image_with("ln -s " .. target .. " etc")
        image:run { shell = "echo bad >/etc/hosts; echo bad >/etc/file", stderr = false }
        assert.equal("as it was\n", read_host(victim))
        assert.is_nil(lfs.attributes(outside .. "/hosts"))
      end
    end)

    it("whose /etc/passwd is a fifo or leads out hold nobody up", function()
      local fifo = image_with "mkdir etc; mkfifo etc/passwd"
      raises("not_found", fifo.run, fifo, { "true", user = "somebody" })
      local outside = scratch.file "somebody:x:0:0::/:/bin/sh\n"
      local link = image_with(("mkdir etc; ln -s %s etc/passwd"):format(outside))
      raises("not_found", link.run, link, { "true", user = "somebody" })
    end)

    it("keep no trace of the hosts, hostname and resolv.conf that a run sees", function()
      local before = image_with "mkdir etc; echo mine >etc/hosts; echo own >etc/hostname"
      local after = before:run { shell = "cat /etc/hosts; hostname; echo x >>/etc/hosts; echo new >/new",
        hostname = "box", check = true }
      assert.match("127.0.0.1.*\tbox\nbox\n$", after.stdout)
      assert.equal("mine\n", after:read "/etc/hosts")
      assert.equal("own\n", after:read "/etc/hostname")
      local names = {}
      for _, e in ipairs(after:ls "/etc") do names[#names + 1] = e.name end
      assert.same({ "hostname", "hosts" }, names)
      assert.equal("new\n", sh("cd " .. arena.newest_layer(home) .. " && find . -mindepth 1 -printf '%P\n'"))
    end)

    it("keep no trace of the mount points that they lack", function()
      local after = base:run { check = true,
        shell = "ls -d /proc/1 /dev/null /sys /etc/hosts; echo new >/new" }
      local names = {}
      for _, e in ipairs(after:ls "/") do names[#names + 1] = e.name end
      assert.same({ "attack", "bin", "new", "tmp" }, names)
      assert.equal("new\n", sh("cd " .. arena.newest_layer(home) .. " && find . -mindepth 1 -printf '%P\n'"))
    end)

    it("are seen by each run as they are: what another run of the same image did is not there", function()
      for _, disposable in ipairs { true, false } do
        for _ = 1, 3 do
          local marked = try(base, { "mark" }, { disposable = disposable })
          assert.equal("ok", marked.times)
          assert.same({ user = "ENODATA", overlay = "ENODATA", times = "new", shm = "ENOENT",
            queue = "ENOENT", segment = "ENOENT" }, try(base, { "marks" }))
        end
      end
    end)

    it("do not bring the device nodes of an imported directory along", function()
      local tree = arena.tree(attack)
      local made = scratch.is_root
        and os.execute(("cd %s && mknod disk b 254 0 && mknod mem c 1 1 && mknod null c 1 3"):format(tree))
      local image = box.images:import(made and tree or "/dev") -- which an ordinary user has devices in
      for _, e in ipairs(image:ls "/") do
        assert.not_match(e.kind, "char block other", 1, true)
      end
      raises("not_found", image.read, image, "/null")
    end)

    it("with a device node in a layer, put there behind the store's back, do not let it be opened", function()
      local s <close> = base:session()
      s:run "echo x >/x"
      local made = scratch.is_root and os.execute(("cd %s && mknod zero c 1 5 && chmod 666 zero")
        :format(arena.newest_layer(home)))
      if made then
        refused(try(s, { "open", "/zero" }), "EACCES", 1)
        raises("invalid", s.read, s, "/zero")
      else -- nobody who could make one could be stopped
        assert.is_falsy(os.execute(("mknod %s/zero c 1 5 2>/dev/null"):format(arena.newest_layer(home))))
      end
    end)

    it("lie where other users of the machine cannot get at a setuid program in them", function()
      assert.equal("rwx------", lfs.attributes(home, "permissions"))
      local open_home = scratch.dir "open"
      sh("chmod 755 " .. open_home)
      bough.open(open_home):close()
      assert.equal("rwx------", lfs.attributes(open_home, "permissions"))
    end)
  end)

  describe("reading an image", function()
    local image

    setup(function()
      image = base:run { check = true, shell = ([[
        mkdir /d; cd /d; echo inside >file
        ln -s %s absolute; ln -s ../../../../../../../../../..%s climbing; ln -s loop loop; ln -s . here
        ln -s /proc/self/root/etc/passwd magic; ln -s /proc/1/environ environ; ln -s /dev/null device
        ln -s / top; ln -s ../../../../../.. above; ln -s %s directory; ln -s /d/file good
        mkfifo fifo; /attack socket /d/socket]]):format(secret, secret, secret:match "^(.*)/") }
    end)

    it("follows links within it, and none out of it", function()
      assert.equal("inside\n", image:read "/d/good")
      assert.equal("inside\n", image:read "/d/here/here/../d/top/d/file")
      assert.equal("inside\n", image:read("/d" .. UP .. "/d/file"))
      for _, name in ipairs { "absolute", "climbing", "magic", "environ", "device", "directory/file",
        "above" .. secret, "top/../.." .. secret } do
        raises("not_found", image.read, image, "/d/" .. name)
      end
      raises("not_found", image.read, image, secret)
      raises("not_found", image.read, image, UP .. secret)
      assert.is_false((pcall(image.read, image, "/d/loop")))
      assert.is_false((pcall(image.read, image, "/d/here/loop/x")))
    end)

    it("lists within it, and nothing outside of it", function()
      local function names(path)
        local all = {}
        for _, e in ipairs(image:ls(path)) do all[#all + 1] = e.name end
        return all
      end
      local root = names "/"
      assert.same({ "attack", "bin", "d", "tmp" }, root)
      for _, path in ipairs { UP, "/d/top", "/d/above", "/d/top/../..", "/d" .. UP } do
        assert.same(root, names(path))
      end
      raises("not_found", image.ls, image, "/d/directory")
      raises("not_found", image.ls, image, "/proc/self/fd")
    end)

    it("never waits for a fifo nor connects to a socket", function()
      for _, name in ipairs { "fifo", "socket" } do
        raises("invalid", image.read, image, "/d/" .. name)
        assert.is_false((pcall(image.ls, image, "/d/" .. name)))
        assert.is_false((pcall(image.download, image, "/d/" .. name, scratch.dir() .. "/x")))
      end
      assert.equal("inside\n", image:read "/d/file")
    end)
  end)
end)
