--- Images: finding, naming, listing, removing and reading them.

local bough = require "bough"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local NOWHERE = "00000000-0000-4000-8000-000000000000"

local function uuids(images)
  local all = {}
  for i, image in ipairs(images) do all[i] = image.uuid end
  return all
end

return function(open, lacks)
  describe("images", function()
    local box, base

    setup(function()
      box = open()
      base = box.images:use "busybox"
    end)

    teardown(function() box:close() end)

    describe("are found", function()
      it("by tag and by uuid, in any case", function()
        assert.equal(base, box.images:use "busybox")
        assert.equal(base, box.images:get "busybox")
        assert.equal(base, box.images:get(base.uuid))
        assert.equal(base, box.images:get(base.uuid:upper()))
        assert.equal(base, box.images:use(base.uuid))
        assert.equal("busybox", box.images:get "busybox".tag)
        assert.equal(base, box.images:use(base))
      end)

      it("with their result and outputs", function()
        local made = base:run "echo out; echo err >&2; exit 4"
        local found = box.images:get(made.uuid)
        assert.equal("out\n", found.stdout)
        assert.equal("err\n", found.stderr)
        assert.equal(4, found.exit_code)
        assert.equal("succeeded", found.state)
        assert.same(made.result, found.result)
      end)

      it("not when they are not there: not_found, with the nearest tag", function()
        raises("not_found", box.images.get, box.images, NOWHERE)
        raises("not_found", box.images.use, box.images, NOWHERE)
        raises("not_found", box.images.use, box.images, NOWHERE, { strict = true })
        local problem = raises("not_found", box.images.get, box.images, "busibox")
        assert.match('did you mean "busybox"', problem.message, 1, true)
        raises("not_found", box.images.use, box.images, "no-such-image")
      end)

      it("not by what is no reference at all", function()
        for _, wrong in ipairs { "", 7, {}, "two\nlines" } do
          raises("invalid", box.images.get, box.images, wrong)
        end
        raises("invalid", box.images.get, box.images)
        raises("invalid", box.images.get)
      end)
    end)

    if not lacks.imports then
      describe("come in", function()
        it("from a directory", function()
          local dir = scratch.dir()
          scratch.sh("cd " .. dir .. " && mkdir -m 0750 sub && echo one >sub/one && ln -s sub/one link")
          local image = box.images:import(dir, { tag = "from-directory" })
          assert.same({ "link", "sub" }, fixture.names(image, "/"))
          assert.equal("one\n", image:read "/sub/one")
          assert.equal("0750", image:ls "/"[2].mode_string)
          assert.equal("from-directory", image.tag)
          assert.equal("import", image.origin)
          assert.is_nil(image.parent_uuid)
          raises("state", function() return image.result end)
        end)

        it("from an archive", function()
          local dir = scratch.dir()
          scratch.sh(("cd %s && mkdir root && echo one >root/one && tar -C root -czf it.tar.gz ."):format(dir))
          local image = box.images:import(dir .. "/it.tar.gz")
          assert.equal("one\n", image:read "/one")
        end)

        it("once with use and a tag", function()
          local dir = scratch.dir()
          scratch.file("x", dir .. "/file")
          local first = box.images:use(dir, { tag = "used-once" })
          assert.equal(first, box.images:use(dir, { tag = "used-once" }))
          assert.equal(first, box.images:use "used-once")
        end)

        it("not from what is not there, is no archive, or is a uuid", function()
          raises("not_found", box.images.import, box.images, scratch.dir() .. "/nothing")
          raises("invalid", box.images.import, box.images, scratch.file(("no archive\n"):rep(100)))
          raises("invalid", box.images.import, box.images, NOWHERE)
        end)
      end)
    end

    describe("have tags", function()
      it("that move, and leave the image that had them", function()
        local one, two = base:run "true", base:run "true"
        assert.equal("moving", one:tag_as("moving").tag)
        assert.equal(one, box.images:get "moving")
        two:tag_as "moving"
        assert.equal(two, box.images:get "moving")
        assert.is_nil(box.images:get(one.uuid).tag)
      end)

      it("that go with untag and tag_as(nil) alike", function()
        for _, untag in ipairs { function(i) return i:untag() end, function(i) return i:tag_as(nil) end } do
          local image = base:run { "true", tag = "going" }
          local bare = untag(image)
          assert.is_nil(bare.tag)
          assert.equal(image, bare)
          raises("not_found", box.images.get, box.images, "going")
        end
      end)

      it("that are checked", function()
        raises("invalid", base.tag_as, base, "")
        raises("invalid", base.tag_as, base, "two words")
        raises("invalid", base.tag_as, base, NOWHERE)
      end)
    end)

    describe("never change", function()
      it("by assignment", function()
        raises("invalid", function() base.tag = "x" end)
        raises("invalid", function() base.anything = 1 end)
        base:run("true").result.exit_code = 9
        local image = base:run "true"
        image.result.exit_code = 9
        assert.equal(0, image.exit_code)
      end)
    end)

    describe("are listed", function()
      local list_box, root, kids, named

      setup(function()
        list_box = open()
        root = list_box.images:use "busybox"
        kids = {}
        for i = 1, 5 do kids[i] = root:run("echo " .. i) end
        named = { kids[2]:tag_as "list/two", kids[4]:tag_as "list/four" }
      end)

      teardown(function() list_box:close() end)

      it("newest first", function()
        local all = uuids(list_box.images:list())
        assert.same({ kids[5].uuid, kids[4].uuid, kids[3].uuid, kids[2].uuid, kids[1].uuid, root.uuid },
          { table.unpack(all, 1, 6) })
        assert.same(all, uuids(list_box.images()))
      end)

      it("oldest first when asked for", function()
        local all = uuids(list_box.images:list())
        local other = uuids(list_box.images:list { oldest_first = true })
        for i = 1, #all do assert.equal(all[i], other[#all + 1 - i]) end
      end)

      it("by tag, and by a pattern of tags", function()
        assert.same({ kids[2].uuid }, uuids(list_box.images { tag = "list/two" }))
        assert.same({ kids[4].uuid, kids[2].uuid }, uuids(list_box.images { tag = "list/*" }))
        assert.same({ kids[4].uuid }, uuids(list_box.images { tag = "list/f?ur" }))
        assert.same({}, uuids(list_box.images { tag = "list" }))
        assert.equal(named[1].tag, list_box.images { tag = "list/two" }[1].tag)
      end)

      it("only with a tag", function()
        assert.same({ kids[4].uuid, kids[2].uuid, root.uuid }, uuids(list_box.images { tagged = true }))
      end)

      it("by parent, as an image or a uuid", function()
        local expected = { kids[5].uuid, kids[4].uuid, kids[3].uuid, kids[2].uuid, kids[1].uuid }
        assert.same(expected, uuids(list_box.images { parent = root }))
        assert.same(expected, uuids(list_box.images { parent = root.uuid }))
        assert.same({}, uuids(list_box.images { parent = kids[1] }))
        raises("invalid", list_box.images.list, list_box.images, { parent = "busybox" })
      end)

      it("from a time on, and before one", function()
        local at = kids[3].created_at
        assert.same({ kids[5].uuid, kids[4].uuid, kids[3].uuid }, uuids(list_box.images { since = at }))
        assert.same({ kids[2].uuid, kids[1].uuid }, uuids(list_box.images { before = at, parent = root }))
        assert.same({ kids[2].uuid, kids[1].uuid }, uuids(list_box.images { ["until"] = at, parent = root }))
        assert.same({}, list_box.images { before = "1h" })
        assert.same({}, list_box.images { since = os.time() + 60 })
        assert.equal(5, #list_box.images { since = { ago = 3600 }, parent = root })
        raises("invalid", list_box.images.list, list_box.images, { since = "yesterday" })
      end)

      it("up to a number", function()
        assert.same({ kids[5].uuid, kids[4].uuid }, uuids(list_box.images { number = 2 }))
        local before = kids[1].created_at
        assert.same({ root.uuid }, uuids(list_box.images { number = 1, tagged = true, before = before }))
        for _, wrong in ipairs { 0, -1, 1.5, "all" } do
          raises("invalid", list_box.images.list, list_box.images, { number = wrong })
        end
      end)

      it("not by an option nobody knows", function()
        local problem = raises("invalid", list_box.images.list, list_box.images, { numbr = 1 })
        assert.match('"number"', problem.message, 1, true)
      end)

      it("with results that are fetched when asked for", function()
        local image = list_box.images { parent = root, number = 1 }[1]
        assert.equal(0, image.exit_code)
        assert.equal("5\n", image.stdout)
      end)

      it("as parents and children", function()
        assert.same({ kids[1].uuid, kids[2].uuid, kids[3].uuid, kids[4].uuid, kids[5].uuid },
          uuids(root:children()))
        assert.same({}, kids[1]:children())
        assert.equal(root, kids[1]:parent())
      end)

      -- the last one: it leaves an image more
      it("one after another, without those that come meanwhile", function()
        local before, seen = uuids(list_box.images { parent = root }), {}
        for image in list_box.images:iter { parent = root } do
          seen[#seen + 1] = image.uuid
          if #seen == 1 then root:run "true" end
        end
        assert.same(before, seen)
      end)
    end)

    if not lacks.removal then
      describe("are removed", function()
        it("when nothing is made from them and they have no tag", function()
          local image = base:run "echo x >/x"
          image:remove()
          raises("not_found", box.images.get, box.images, image.uuid)
          raises("not_found", image.run, image, "true")
          raises("not_found", image.read, image, "/x")
          raises("not_found", image.remove, image)
        end)

        it("not while they have a tag or children", function()
          local parent = base:run "true"
          local child = parent:run { "true", tag = "kept" }
          assert.match("tag", raises("state", child.remove, child).message, 1, true)
          raises("state", parent.remove, parent)
          child:untag():remove()
          box.images:remove(parent.uuid)
          raises("not_found", box.images.get, box.images, parent.uuid)
        end)
      end)
    end

    describe("are read", function()
      local image

      setup(function()
        image = base:run [[
          mkdir /t; cd /t; echo abc >file; ln file hard; chmod 4751 file
          touch -d '2001-02-03 04:05:06' old; mkdir -m 1770 dir; mkfifo -m 600 fifo
          ln -s /etc/passwd abs; ln -s ../../../../etc/passwd up; ln -s dir todir
          ln -s loop loop; ln -s nowhere dangling; printf 'a\000\377' >binary
          touch 'two words' ./-dash; echo in >dir/in]]
      end)

      local function entry(name)
        for _, found in ipairs(image:ls "/t") do
          if found.name == name then return found end
        end
        error("no entry " .. name, 2)
      end

      it("as a listing sorted by name", function()
        local names = fixture.names(image, "/t")
        local sorted = { table.unpack(names) }
        table.sort(sorted)
        assert.same(sorted, names)
        assert.same(names, fixture.names(image, "t/"))
        assert.equal("-dash", names[1])
      end)

      it("with every kind of entry told", function()
        local kinds = {
          file = "file", hard = "file", dir = "dir", fifo = "fifo", abs = "symlink", dangling = "symlink",
          ["two words"] = "file",
        }
        for name, kind in pairs(kinds) do
          local found = entry(name)
          assert.equal(kind, found.kind)
          assert.equal(kind == "file", found.is_file)
          assert.equal(kind == "dir", found.is_dir)
          assert.equal(kind == "symlink", found.is_symlink)
          assert.equal(kind == "fifo", found.is_fifo)
          assert.equal("/t/" .. name, tostring(found))
        end
      end)

      it("with size, mode, owner, links, time and target", function()
        local file = entry "file"
        assert.equal(4, file.size)
        assert.equal("4751", file.mode_string)
        assert.equal(2, file.nlink)
        assert.equal(0, file.uid)
        assert.equal(0, file.gid)
        assert.equal("1770", entry "dir".mode_string)
        assert.equal("0600", entry "fifo".mode_string)
        assert.equal(981173106, entry "old".mtime)
        assert.equal("/etc/passwd", entry "abs".symlink_to)
        assert.equal("nowhere", entry "dangling".symlink_to)
        assert.is_nil(file.symlink_to)
      end)

      it("as text and as bytes", function()
        assert.equal("abc\n", image:read "/t/file")
        assert.equal("abc\n", image:read "t/file")
        assert.equal("a\0\xff", image:read "/t/binary")
        assert.equal("", image:read "/t/old")
        assert.equal("", image:read "/t/two words")
      end)

      it("along links, which never lead out of the image", function()
        local inside = image:read "/etc/passwd"
        assert.is_nil(inside:find "bin/bash")
        assert.equal(inside, image:read "/t/abs")
        assert.equal(inside, image:read "/t/up")
        assert.equal(inside, image:read "/../../../etc/passwd")
        assert.equal("in\n", image:read "/t/todir/in")
        assert.same({ "in" }, fixture.names(image, "/t/todir"))
      end)

      it("not where there is nothing to read, told in one line", function()
        raises("not_found", image.read, image, "/t/nothing")
        raises("not_found", image.read, image, "/t/dangling")
        raises("not_found", image.ls, image, "/t/nothing")
        for _, path in ipairs { "/t/dir", "/t/fifo" } do
          local problem = raises("invalid", image.read, image, path)
          assert.match(path, problem.message, 1, true)
        end
        raises("invalid", image.ls, image, "/t/file")
        assert.has_error(function() image:read "/t/loop" end)
        assert.has_error(function() image:read "/t/file/below" end)
        raises("invalid", image.read, image, "")
        raises("invalid", image.read, image, "a\0b")
        raises("invalid", image.read, image)
      end)

      it("through entries, which stay with the image that was listed", function()
        local found = entry "file"
        assert.equal("abc\n", found:read())
        assert.equal("in\n", entry "dir":ls()[1]:read())
        local copy = found:download(scratch.dir() .. "/")
        assert.match("/file$", copy)
        assert.equal("abc\n", fixture.read_file(copy))
      end)

      it("by walking, parents first and links as they are", function()
        local seen = {}
        for found in image:walk "/t" do seen[#seen + 1] = found.full_path end
        local dir, inside
        for i, path in ipairs(seen) do
          if path == "/t/dir" then dir = i end
          if path == "/t/dir/in" then inside = i end
          assert.not_equal("/t/todir/in", path)
        end
        assert.is_true(dir < inside)
      end)

      it("by download into a file or a directory, whole or not at all", function()
        local dir = scratch.dir()
        assert.equal(dir .. "/file", image:download("/t/file", dir))
        assert.equal("abc\n", fixture.read_file(dir .. "/file"))
        image:download("/t/binary", dir .. "/file")
        assert.equal("a\0\xff", fixture.read_file(dir .. "/file"))
        raises("not_found", image.download, image, "/t/nothing", dir .. "/other")
        raises("not_found", image.download, image, "/t/file", dir .. "/no/where")
        assert.equal("file\n", scratch.sh("ls -A " .. dir))
      end)

      it("when they are large, and in chunks", function()
        local large = base:run "seq 200000 >/large"
        local content = large:read "/large"
        assert.equal(1288895, #content)
        assert.equal("200000\n", content:sub(-7))
        local chunks = {}
        for chunk in large:stream "/large" do chunks[#chunks + 1] = chunk end
        assert.is_true(#chunks > 1)
        assert.equal(content, table.concat(chunks))
      end)

      it("when a directory is large", function()
        local many = base:run "mkdir /d; cd /d; seq 3000 | sed s/^/a-rather-long-name-/ | xargs touch"
        assert.equal(3000, #many:ls "/d")
      end)
    end)

    it("belong to their engine", function()
      local other <close> = open()
      raises("invalid", other.images.use, other.images, base)
      raises("not_found", other.images.get, other.images, base.uuid)
    end)

    it("are out of reach when the engine is closed", function()
      local other = open()
      local image = other.images:use "busybox":run "true"
      other:close()
      other:close()
      assert.is_true(other.closed)
      for _, call in ipairs {
        function() image:run "true" end, function() image:ls() end, function() other.images:list() end,
        function() other:info() end, function() other:gc() end, function() other:session "busybox" end,
      } do
        raises("closed", call)
      end
      assert.match("closed", tostring(other), 1, true)
      assert.equal(0, image.exit_code)
    end)

    it("run when they are told to, from bough.safe as well", function()
      local safe = require "bough.safe"
      local store = box:info().home
      if not store then return end
      local quiet <close> = safe.open(store)
      local image, problem = quiet.images:get(NOWHERE)
      assert.is_nil(image)
      assert.equal("not_found", problem.kind)
      image = quiet.images:get "busybox"
      assert.equal("x\n", image:run("echo x").stdout)
      image, problem = image:run { "false", check = true }
      assert.is_nil(image)
      assert.equal("exit", problem.kind)
      assert.is_true(bough.is_error(problem))
    end)
  end)
end
